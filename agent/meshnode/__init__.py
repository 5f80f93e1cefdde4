"""
What this node's agent tells its own apiserver: its MeshNode (clustermesh.io/v1alpha1).

It is written where the apiserver reads: to the API server of Kubernetes, or into a directory of
manifests. Either is looked at now and then and not watched: a thousand agents that each keep a
watch open cost an API server more than a question every few minutes, and nobody else has a reason
to alter the object. What fails here stops no traffic, so it is shown and tried again.
"""

from .keeper import keep_mesh_node

__all__ = ["keep_mesh_node"]
