"""The models that the router serves, as its Model frames tell, and which of them a request means."""

from __future__ import annotations

from collections.abc import Iterable

from farm.client.inputs import InputLayout
from farm.client.outputs import OutputLayout
from farm.errors import ModelNotFound
from shm.client import Model
from shm.endings import Reason

LATEST = "latest"
Version = int | str | None


class Served:
    """One model version. `inputs` and `outputs` are None until the router knows its signature."""

    def __init__(self, model: Model, before: Served | None = None) -> None:
        self.model = model
        self.index = model.index
        self.name = model.name
        self.version = model.version
        self.deadline_ns = model.deadline_ns
        self.inputs: InputLayout | None = None
        self.outputs: OutputLayout | None = None
        if before is not None and before.model.signature == model.signature:
            self.inputs, self.outputs = before.inputs, before.outputs
        elif model.signature is not None:
            self.inputs = InputLayout(model.name, model.signature)
            self.outputs = OutputLayout(model.signature)


class Catalog:
    """All models of one session. `found` remembers what was asked for: (name, version) as a caller writes it."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._served: dict[int, Served] = {}
        self.found: dict[tuple[str, Version], Served] = {}
        for model in models:
            self.update(model)

    def update(self, model: Model) -> None:
        self._served[model.index] = Served(model, self._served.get(model.index))
        self.found = {}

    def models(self) -> list[Model]:
        return [served.model for _, served in sorted(self._served.items())]

    def find(self, name: str, version: Version) -> Served:
        """version: a number, an alias, or None for the latest: the highest that is ready, else the highest.

        Raises:
            ModelNotFound: there is none; the message lists what there is.
        """
        versions = [served for served in self._served.values() if served.name == name]
        if not versions:
            raise ModelNotFound(
                f"no model {name!r} here; there are: {self._listing()}", reason=Reason.UNKNOWN_MODEL.code, model=name
            )
        if isinstance(version, str):
            for served in versions:
                if version in served.model.aliases:
                    return self._remember(name, version, served)
        if version is None or version == LATEST:
            served = max(versions, key=lambda served: (served.model.ready, served.version))
            return self._remember(name, version, served)
        for served in versions:
            if served.version == version:
                return self._remember(name, version, served)
        raise ModelNotFound(
            f"model {name!r} has no version {version!r}; there are: {self._listing()}",
            reason=Reason.UNKNOWN_VERSION.code,
            model=name,
        )

    def _remember(self, name: str, version: Version, served: Served) -> Served:
        self.found[name, version] = served
        return served

    def _listing(self) -> str:
        words = []
        for served in self._served.values():
            aliases = "".join(f", {alias}" for alias in served.model.aliases)
            words.append(f"{served.name} (version {served.version}{aliases})")
        return ", ".join(words) or "none"
