"""The number of replicas of a Kubernetes Deployment, by its `scale` subresource."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from omnibus.errors import ConfigError, OmnibusError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = 10.0
_MOST_READ = 1 << 20
"""Bytes of an answer; a scale has a few hundred."""


class ClusterRefused(OmnibusError, code="cluster_refused", http_status=502, retryable=True):
    """The cluster's API did not do what it was asked for."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow none: the token would go along, to another host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentScale:
    """The scale of one Deployment. Every method raises ClusterRefused."""

    api: str
    """URL of the API, such as that of `kubectl proxy`."""
    namespace: str
    name: str
    token: Path | None = None
    """A file, which the cluster renews."""
    ca: Path | None = None

    @classmethod
    def in_cluster(cls, name: str, *, namespace: str | None = None, api: str | None = None) -> DeploymentScale:
        """As a pod sees it: its own namespace, and the token of its service account; raises ConfigError outside of a cluster.

        `api` is an API that needs no token, such as that of `kubectl proxy`.
        """
        if api is not None:
            return cls(api=api.rstrip("/"), namespace=namespace or "default", name=name)
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if host is None or not _ACCOUNT.is_dir():
            raise ConfigError("this is no pod with a service account: name the API with --kube-api", param="kube_api")
        where = f"[{host}]" if ":" in host else host
        own = (_ACCOUNT / "namespace").read_text().strip()
        return cls(
            api=f"https://{where}:{port}", namespace=namespace or own, name=name,
            token=_ACCOUNT / "token", ca=_ACCOUNT / "ca.crt",
        )  # fmt: skip

    async def set(self, replicas: int) -> None:
        """Have so many; nothing is written where the Deployment says so already. One look, and at most one write."""
        if await self.get() != replicas:
            await asyncio.to_thread(self._call, {"spec": {"replicas": replicas}})

    async def get(self) -> int:
        """Replicas that the Deployment asks for."""
        found = await asyncio.to_thread(self._call, None)
        return int(found.get("spec", {}).get("replicas", 0))

    def _call(self, change: object) -> dict[str, dict[str, int]]:
        url = f"{self.api}/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}/scale"
        headers = {"Accept": "application/json", "Content-Type": "application/merge-patch+json"}
        data = None if change is None else json.dumps(change).encode()
        request = urllib.request.Request(url, data, headers, method="GET" if data is None else "PATCH")  # noqa: S310 the operator's
        try:
            if self.token is not None:
                request.add_header("Authorization", f"Bearer {self.token.read_text().strip()}")
            context = ssl.create_default_context(cafile=self.ca) if url.startswith("https") else None
            opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))
            with opener.open(request, timeout=_TIMEOUT) as answer:
                found: dict[str, dict[str, int]] = json.loads(answer.read(_MOST_READ))
                return found
        except urllib.error.HTTPError as error:
            why = error.read(300).decode(errors="replace")
            raise ClusterRefused(f"{request.method} {url}: {error.code} {why}") from error
        except (OSError, ValueError, HTTPException) as error:
            raise ClusterRefused(f"{request.method} {url}: {error}") from error
