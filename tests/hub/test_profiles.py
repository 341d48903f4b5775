"""The menu of user servers: what a file may say, who may have what, and the same profile for an engine and a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cellwork.errors import BadInput, NotFound, Refused
from cellwork_hub import kubernetes, profiles


def menu(tmp_path: Path, text: str) -> list[profiles.Profile]:
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    return profiles.load(path)


def test_without_a_file_the_built_in_menu_holds_and_its_own_file_gives_it_back(tmp_path: Path) -> None:
    built_in = profiles.load(tmp_path / "profiles.toml")
    assert [profile.name for profile in built_in] == ["cpu-small", "cpu-large", "gpu"]
    assert menu(tmp_path, profiles.as_toml(built_in)) == built_in


def test_a_file_is_the_whole_menu_and_its_first_profile_the_default(tmp_path: Path) -> None:
    text = '[tiny]\nmemory = "512M"\ncores = 0.5\n[big]\nmemory = "1.5T"\ncores = 64\nimage = "lab/own:3"\ngroups = ["astro"]'
    tiny, big = menu(tmp_path, text)
    assert (tiny.memory_bytes, big.memory_bytes) == (512 * 2**20, int(1.5 * 2**40))
    assert (tiny.full_image, big.full_image) == ("cellwork/cpu:0.1.0", "lab/own:3")
    assert profiles.choose([tiny, big], "", set()) == tiny


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a", "not TOML"),
        ("", "has no profile"),
        ('[a]\nmemory = "2G"', "cores"),
        ('[a]\nmemory = "2 gigs"\ncores = 1', "not a size"),
        ('[a]\nmemory = "2M"\ncores = 1', "too little"),
        ('[a]\nmemory = "2G"\ncores = 0', "not a machine"),
        ('[a]\nmemory = "2G"\ncores = nan', "not a machine"),
        ('[a]\nmemory = "2G"\ncores = 1\ngpus = -1', "not a machine"),
        ('[a]\nmemory = "2G"\ncores = 1\nmemry = 2', "did you mean 'memory'"),
        ('[a]\nmemory = "2G"\ncores = 1\nname = "b"', "unknown"),
        ('["../a"]\nmemory = "2G"\ncores = 1', "not a name"),
        ("a = 1", "not a table"),
    ],
)
def test_a_wrong_menu_is_refused_with_what_is_wrong_in_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        menu(tmp_path, text)


def test_a_profile_of_a_group_is_for_its_members_and_a_wrong_name_gets_the_near_one() -> None:
    own = [*profiles.BUILT_IN[:2], profiles.Profile(name="gpu", title="", memory="2G", cores=1, groups=["deep"])]
    assert profiles.choose(own, "gpu", {"deep", "other"}).name == "gpu"
    assert profiles.choose(own, "gpu", None).name == "gpu"
    assert [p.name for p in profiles.allowed(own, {"other"})] == ["cpu-small", "cpu-large"]
    with pytest.raises(Refused, match="for deep only"):
        profiles.choose(own, "gpu", {"other"})
    with pytest.raises(NotFound, match="did you mean 'cpu-small'"):
        profiles.choose(own, "cpu-smal", set())
    with pytest.raises(Refused, match="none is for you"):
        profiles.choose(own[2:], "", set())


DOCUMENTED = {  # the fields of the Zero-to-JupyterHub chart that we set, and the types its schema gives them
    "hub.allowNamedServers": bool, "hub.concurrentSpawnLimit": int, "hub.extraConfig": dict,
    "singleuser.image.name": str, "singleuser.image.tag": str, "singleuser.cmd": list, "singleuser.defaultUrl": str, "singleuser.uid": int,
    "singleuser.fsGid": int, "singleuser.allowPrivilegeEscalation": bool, "singleuser.memory.limit": (str, int), "singleuser.memory.guarantee": (str, int),
    "singleuser.cpu.limit": (int, float), "singleuser.cpu.guarantee": (int, float), "singleuser.networkPolicy.enabled": bool,
    "singleuser.cloudMetadata.blockWithIptables": bool, "singleuser.profileList": list, "singleuser.extraEnv": dict, "singleuser.storage.type": str,
    "singleuser.storage.capacity": str, "singleuser.storage.homeMountPath": str, "cull.enabled": bool, "cull.timeout": int,
}  # fmt: skip
NO_CLUSTER = """
apiVersion: v1
current-context: none
contexts: [{name: none, context: {cluster: none, user: none}}]
clusters: [{name: none, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: none, user: {}}]
"""
FREE = {"hub.extraConfig", "singleuser.extraEnv"}  # the schema leaves what is below to the user


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and path not in FREE:
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def test_the_charts_values_are_fields_it_documents_of_the_types_it_takes(tmp_path: Path) -> None:
    own = [
        *profiles.BUILT_IN[:2],
        profiles.Profile(name="gpu", title="", memory="2G", cores=1, gpus=1, groups=["deep"]),
    ]
    made = kubernetes.values(own, url="http://cellwork.lab/", registry="registry.lab", idle_seconds=600)
    wrong = {path: value for path, value in leaves(made) if not isinstance(value, DOCUMENTED.get(path, ()))}
    assert wrong == {}
    assert made["singleuser"]["image"] == {"name": "registry.lab/cellwork/cpu", "tag": "0.1.0"}
    assert made["singleuser"]["extraEnv"]["CELLWORK_URL"] == "http://cellwork.lab"


def test_kubespawner_takes_every_profile_and_gives_each_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kube.yaml").write_text(NO_CLUSTER)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kube.yaml"))
    from kubespawner import KubeSpawner

    async def spawner(override: dict[str, Any]) -> KubeSpawner:
        return KubeSpawner(_mock=True, **override)

    for profile, entry in zip(profiles.BUILT_IN, profiles.for_kubernetes(profiles.BUILT_IN), strict=True):
        override = entry["kubespawner_override"]
        assert [name for name in override if name not in KubeSpawner.class_trait_names(config=True)] == []
        made = asyncio.run(spawner(override))
        assert (made.mem_limit, made.cpu_limit, made.image) == (profile.memory_bytes, profile.cores, profile.full_image)
        assert made.extra_resource_limits == ({"nvidia.com/gpu": "1"} if profile.gpus else {})


def test_the_clusters_hook_offers_a_profile_of_a_group_to_its_members_only() -> None:
    spec = profiles.for_kubernetes(profiles.BUILT_IN)
    config = SimpleNamespace(KubeSpawner=SimpleNamespace(profile_list=spec))
    exec(kubernetes.hook({"gpu": ["deep"]}), {"c": config})

    def slugs(*groups: str) -> list[str]:
        user = SimpleNamespace(groups=[SimpleNamespace(name=group) for group in groups])
        return [p["slug"] for p in config.KubeSpawner.profile_list(SimpleNamespace(user=user))]

    assert slugs("group:deep") == ["cpu-small", "cpu-large", "gpu"]
    assert slugs("role:author") == ["cpu-small", "cpu-large"]
