"""What a user applies to get a cluster: KubeRay manifests, a cluster-launcher file, a Dockerfile. Built as plain data.

Pure: starts nothing, asks no cluster, and puts no credential into what it writes.
"""
