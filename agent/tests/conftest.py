from clustermesh.tests.etcd_server import etcd_server, own_etcd_server, prefix

__all__ = ["etcd_server", "own_etcd_server", "prefix"]
