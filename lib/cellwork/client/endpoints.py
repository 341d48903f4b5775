"""Endpoints and predictions over HTTP."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

from cellwork.client.base import Connection
from cellwork.wire.endpoints import (
    Answer,
    ArmWish,
    Deploy,
    Deployment,
    EndpointStatus,
    Forget,
    Forgotten,
    InputWish,
    Prediction,
    Request,
    RolloutWish,
    RouteTable,
    Submission,
    Submit,
)


class Endpoints:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def deploy(self, endpoint: str, deploy: Deploy) -> RouteTable:
        return self._to.call("inference", "PUT", f"/api/v1/endpoints/{endpoint}", RouteTable, deploy)

    def rollback(self, endpoint: str, reason: str = "", *, revision: int | None = None) -> RouteTable:
        """Serve the previous version again; `revision` is what the caller saw, None takes what is there."""
        wish = {"reason": reason, "revision": revision}
        return self._to.call("inference", "POST", f"/api/v1/endpoints/{endpoint}/rollback", RouteTable, wish)

    def put_arm(self, endpoint: str, version: int, wish: ArmWish) -> RouteTable:
        """Put a version beside the live one: as canary, shadow, or pinned."""
        return self._to.call("inference", "PUT", f"/api/v1/endpoints/{endpoint}/arms/{version}", RouteTable, wish)

    def remove_arm(
        self, endpoint: str, version: int, *, model: str = "", revision: int | None = None, reason: str = ""
    ) -> RouteTable:
        return self._to.call(
            "inference",
            "DELETE",
            f"/api/v1/endpoints/{endpoint}/arms/{version}",
            RouteTable,
            model=model,
            revision=revision,
            reason=reason,
        )

    def put_input(self, endpoint: str, wish: InputWish) -> RouteTable:
        """Set what becomes of values that are out of range or were never seen."""
        return self._to.call("inference", "PUT", f"/api/v1/endpoints/{endpoint}/input", RouteTable, wish)

    def roll_out(self, endpoint: str, wish: RolloutWish) -> RouteTable:
        """Bring a version to all requests in stages."""
        return self._to.call("inference", "PUT", f"/api/v1/endpoints/{endpoint}/rollout", RouteTable, wish)

    def stop_rollout(self, endpoint: str, reason: str = "") -> RouteTable:
        return self._to.call("inference", "DELETE", f"/api/v1/endpoints/{endpoint}/rollout", RouteTable, reason=reason)

    def list(self) -> Iterator[EndpointStatus]:
        return self._to.listing("inference", "/api/v1/endpoints", EndpointStatus)

    def get(self, endpoint: str) -> EndpointStatus:
        return self._to.call("inference", "GET", f"/api/v1/endpoints/{endpoint}", EndpointStatus)

    def predict(self, endpoint: str, request: Request) -> Answer:
        return self._to.call("inference", "POST", f"/predict/{endpoint}", Answer, request)

    def submit(self, endpoint: str, wish: Submit) -> Submission:
        """Ask for an answer that may come later."""
        return self._to.call("inference", "POST", f"/predict/async/{endpoint}", Submission, wish)

    def submission(self, submission: str) -> Submission:
        return self._to.call("inference", "GET", f"/predict/async/{submission}", Submission)

    def prediction(self, prediction: str) -> Prediction:
        return self._to.call("inference", "GET", f"/predictions/{prediction}", Prediction)

    def predictions(
        self, endpoint: str = "", *, after: int = 0, limit: int = 1000, brief: bool = False, deployment: str = ""
    ) -> builtins.list[Prediction]:
        """Predictions with `seq` > `after`, in order (-10: the last ten); `brief` ones come without entities and features."""
        return self._to.call(
            "inference",
            "GET",
            "/api/v1/predictions",
            builtins.list[Prediction],
            endpoint=endpoint,
            after=after,
            limit=limit,
            brief="true" if brief else "",
            deployment=deployment,
        )

    def forget(self, project: str, wish: Forget) -> Forgotten:
        """Empty what is logged of a subject; an erasure asks it as its part. Needs the scope `admin`."""
        return self._to.call("inference", "POST", f"/api/v1/forget/{project}", Forgotten, wish)

    def deployment(self, deployment: str) -> Deployment:
        return self._to.call("inference", "GET", f"/api/v1/deployments/{deployment}", Deployment)
