"""The values that the chart is tested with: by name, each with the two that are required."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from .chart import NAMED, Values

PEM: Final = base64.b64encode(b"-----BEGIN CERTIFICATE-----\n").decode()
"""What stands for a certificate where nobody reads it."""


def with_values(*parts: Values) -> dict[str, Any]:
    """`NAMED` with these on top."""
    merged: dict[str, Any] = {}
    for part in (NAMED, *parts):
        _merge(merged, part)
    return merged


def _merge(into: dict[str, Any], values: Values) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _apiserver(**values: Any) -> dict[str, Any]:
    return with_values({"clustermesh": {"apiserver": values}})


_PAIR: Final = {"cert": PEM, "key": PEM}

MATRIX: Final[Mapping[str, dict[str, Any]]] = {
    "default": with_values(),
    "load balancer": _apiserver(
        service={
            "type": "LoadBalancer",
            "annotations": {"example.org/internal": "true"},
            "labels": {"team": "network"},
            "loadBalancerClass": "example.org/lb",
            "loadBalancerIP": "192.0.2.1",
            "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
            "externalTrafficPolicy": "Local",
        }
    ),
    "cluster IP": _apiserver(service={"type": "ClusterIP", "internalTrafficPolicy": "Local"}),
    "node port of Kubernetes' choice": _apiserver(service={"nodePort": 0}),
    "two replicas": _apiserver(
        replicas=2,
        podDisruptionBudget={"minAvailable": "50%", "maxUnavailable": None},
        topologySpreadConstraints=[
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "apiserver"}},
            }
        ],
    ),
    "memory": _apiserver(
        etcd={"storageMedium": "Memory", "sizeLimit": "512Mi", "extraArgs": ["--log-level=debug"]}
    ),
    "511 clusters": with_values(
        {"cluster": {"id": 511}, "clustermesh": {"maxConnectedClusters": 511}}
    ),
    "cron job": _apiserver(
        tls={
            "auto": {"method": "cronJob", "certValidityDuration": 90},
            "server": {"extraDnsNames": ["mesh.example.org"], "extraIpAddresses": ["192.0.2.1"]},
        }
    ),
    "cron job with a CA": with_values(
        {"tls": {"ca": _PAIR}},
        _apiserver(tls={"auto": {"method": "cronJob"}}),
    ),
    "certmanager": _apiserver(
        tls={
            "auto": {
                "method": "certmanager",
                "certManagerIssuerRef": {
                    "group": "cert-manager.io",
                    "kind": "ClusterIssuer",
                    "name": "mesh",
                },
            }
        }
    ),
    "provided": with_values(
        {"tls": {"ca": {"cert": PEM, "key": PEM}}},
        _apiserver(
            tls={
                "auto": {"method": "provided"},
                "server": _PAIR,
                "admin": _PAIR,
                "local": _PAIR,
                "remote": _PAIR,
            }
        ),
    ),
    "provided elsewhere": _apiserver(tls={"auto": {"method": "provided"}, "enableSecrets": False}),
    "CA bundle": with_values({"tls": {"caBundle": {"enabled": True, "content": "one\ntwo\n"}}}),
    "CA bundle of yours": with_values(
        {"tls": {"caBundle": {"enabled": True, "name": "trust", "key": "all.pem"}}}
    ),
    "legacy": _apiserver(tls={"authMode": "legacy"}),
    "connected": with_values(
        {
            "clustermesh": {
                "config": {
                    "enabled": True,
                    "clusters": [
                        {"name": "west", "address": "mesh.west.example.org"},
                        {"name": "north", "ips": ["192.0.2.8", "192.0.2.9"], "port": 32379},
                        {
                            "name": "south",
                            "address": "fd00::7",
                            "tls": {"cert": PEM, "key": PEM, "caCert": PEM},
                        },
                    ],
                }
            }
        }
    ),
    "copied": _apiserver(kvstoremesh={"enabled": True}),
    "monitored": with_values(
        {
            "agent": {
                "metrics": {
                    "enabled": True,
                    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                }
            },
            "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "namespace": "grafana", "annotations": {"folder": "x"}},
            "encryption": {"enabled": True, "wireguard": {"keyAge": 720}},
        },
        _apiserver(
            metrics={"serviceMonitor": {"enabled": True, "annotations": {"a": "b"}}},
            networkPolicy={
                "allowedCIDRs": ["192.0.2.0/24"],
                "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "prometheus"}}}],
            },
        ),
    ),
    "nothing optional": _apiserver(
        podDisruptionBudget={"enabled": False}, networkPolicy={"enabled": False}
    ),
    "encrypted": with_values(
        {
            "encryption": {
                "enabled": True,
                "wireguard": {"port": 51900, "persistentKeepalive": 25, "keyAge": 720},
            }
        }
    ),
    "no datapath": with_values({"agent": {"datapath": "none"}}),
    "everything of pods": with_values(
        {
            "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
            "imagePullSecrets": [{"name": "registry"}],
            "commonLabels": {"team": "network"},
            "logLevel": "debug",
            "logFormat": "json",
            "agent": {
                "routing": "direct",
                "clusterRouting": {"west": "native", "north": "tunnel"},
                "tunnelProtocol": "geneve",
                "tunnelPort": 6082,
                "fastPath": "on",
                "MTU": 1400,
                "extraArgs": ["--log-level=warning"],
                "extraEnv": [{"name": "A", "value": "b"}],
                "extraVolumes": [{"name": "more", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
                "podAnnotations": {"a": "b"},
                "podLabels": {"c": "d"},
                "affinity": {"nodeAffinity": {}},
                "host": {"cgroup": "/sys/fs/cgroup/unified"},
            },
        },
        _apiserver(
            extraArgs=["--log-level=warning"],
            extraEnv=[{"name": "A", "value": "b"}],
            extraVolumes=[{"name": "more", "emptyDir": {}}],
            extraVolumeMounts=[{"name": "more", "mountPath": "/more"}],
            podAnnotations={"a": "b"},
            podLabels={"c": "d"},
            tolerations=[{"key": "dedicated", "operator": "Exists"}],
        ),
    ),
}
