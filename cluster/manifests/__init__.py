"""Files that create a cluster: KubeRay manifests, a cluster-launcher file, a Dockerfile. Built as plain data.

Pure functions: they start nothing, contact no cluster, and write no credentials.
"""
