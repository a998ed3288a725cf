"""What the objects of a mesh say."""

import pytest
import yaml

from orchestrator.config.load import load_config
from orchestrator.errors import UserError
from orchestrator.kubernetes.mesh_config import in_cluster
from orchestrator.kubernetes.render import render
from tests.k8s.meshes import OVERLAYS, config, container, group, objects, one, overlay


def test_a_pool_is_a_group_of_pods_with_a_device_for_each_shard():
    h200 = group(config(), "h200")
    assert (h200["replicas"], h200["maxReplicas"]) == (5, 8)  # four shards and a spare
    assert h200["resources"] == {"CPU": "2", "GPU": "1", "expertmesh-h200": "1"}
    assert container(h200)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_shards_may_share_a_pod():
    h200 = group(config(pods={"h200": {"shards_per_pod": 2}}), "h200")
    assert (h200["replicas"], h200["maxReplicas"]) == (3, 4)
    assert h200["resources"] == {"CPU": "4", "GPU": "2", "expertmesh-h200": "2"}
    assert container(h200)["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_host_memory_holds_the_experts_of_a_cpu_pool():
    host = container(group(config(pods={"host": {"memory": "4GiB"}}), "host"))
    assert host["resources"]["requests"] == {"cpu": "9", "memory": "68Gi"}


def test_engines_get_the_devices_they_ask_for():
    engine = group(config(), "engine")
    assert engine["resources"] == {"CPU": "4", "GPU": "2", "expertmesh-engine": "1"}
    assert container(engine)["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_every_shard_asks_for_room_in_its_own_pool_only():
    inside = in_cluster(config())
    for name, pool in inside.pools.items():
        assert pool.resources[f"expertmesh-{name}"] == 1
        offering = [
            g["groupName"]
            for g in one(config(), "RayCluster")["spec"]["workerGroupSpecs"]
            if f"expertmesh-{name}" in g["resources"]
        ]
        assert offering == [name]


def test_vendors_have_resources_and_images_of_their_own():
    mesh = overlay("mixed-nvidia-ascend-cambricon")
    limits = {
        name: container(group(mesh, name))["resources"]["limits"].keys() - {"cpu", "memory"}
        for name in mesh.pools
    }
    assert limits == {
        "h200": {"nvidia.com/gpu"},
        "a3": {"huawei.com/Ascend910"},
        "mlu590": {"cambricon.com/mlu590"},
        "host": set(),
    }
    assert group(mesh, "mlu590")["resources"]["MLU"] == "1"
    assert len({container(group(mesh, name))["image"] for name in mesh.pools}) == 4


def test_pods_say_whose_devices_they_have():
    h200 = group(config(), "h200")
    assert h200["labels"]["expertmesh.io/vendor"] == "nvidia"
    said = {e["name"]: e.get("value") for e in container(h200)["env"]}
    assert said["EXPERTMESH_POD_RESOURCES"] == "nvidia.com/gpu"


def test_a_taint_named_like_the_device_is_tolerated():
    pods = {"h200": {"tolerations": [{"key": "team", "value": "llm"}]}}
    assert group(config(pods=pods), "h200")["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "value": "llm", "effect": "NoSchedule"},
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_config_in_the_cluster_is_one_that_serve_reads(name, tmp_path):
    file = tmp_path / "mesh.yaml"
    file.write_text(one(overlay(name), "ConfigMap", "expertmesh-config")["data"]["mesh.yaml"])
    inside = load_config(file)
    assert inside == in_cluster(overlay(name))
    assert inside.cluster.ray_address == "auto"
    assert str(inside.cluster.state_dir) == "/state"
    assert inside.gateway.host == "0.0.0.0"


def test_the_mesh_listens_where_the_network_policy_lets_it():
    mesh = config()
    ports = one(mesh, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert in_cluster(mesh).cluster.ports == "21000-21099"
    assert {"protocol": "TCP", "port": 21000, "endPort": 21099} in ports
    fixed = one(mesh, "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]
    for name in ("node-manager-port", "object-manager-port", "min-worker-port", "max-worker-port"):
        port = int(fixed[name])
        assert any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports), name


def test_ports_outside_the_mesh_are_open_where_it_uses_them():
    text = "model: {path: /m}\npools: {c: {vendor: cpu}}\n"
    text += "batch: {database: 'postgresql://mesh@db/ledger'}\n"
    text += "telemetry: {otlp_endpoint: 'http://collector:4317'}\n"
    mesh = config(text, redis_address="redis:6380")
    rule = one(mesh, "NetworkPolicy")["spec"]["egress"][-1]
    assert [port["port"] for port in rule["ports"]] == [4317, 5432, 6380]


def test_the_job_is_another_when_the_config_is():
    def mark(mesh):
        return one(mesh, "RayJob")["metadata"]["annotations"]["expertmesh.io/config-hash"]

    assert mark(config()) == mark(config(image="other:1"))
    assert mark(config()) != mark(overlay("nvidia"))


def test_pods_refuse_another_checkpoint():
    mesh = config(model_claim="weights", model_fingerprint="a" * 32)
    for holder in [one(mesh, "RayCluster")["spec"]["headGroupSpec"], group(mesh, "h200")]:
        check = holder["template"]["spec"]["initContainers"][0]
        assert check["command"][-3:] == ["/model", "--expect", "a" * 32]
        assert check["volumeMounts"] == [{"name": "model", "mountPath": "/model", "readOnly": True}]


def test_keys_are_named_and_never_written(monkeypatch):
    monkeypatch.setenv("EXPERTMESH_API_KEYS", "a-key-nobody-may-see")
    for name in OVERLAYS:
        assert objects(overlay(name), "Secret") == []
        assert "a-key-nobody-may-see" not in yaml.safe_dump_all(render(overlay(name)))


def test_with_redis_the_head_node_may_be_moved():
    def head(mesh):
        return one(mesh, "PodDisruptionBudget", "chat-head")["spec"]["maxUnavailable"]

    assert head(config()) == 0
    mesh = config(redis_address="redis:6379", redis_secret="redis")
    assert head(mesh) == 1
    options = one(mesh, "RayCluster")["spec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis:6379"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "redis"


def test_the_autoscaler_sizes_groups_between_the_pools_sizes():
    h200 = group(overlay("nvidia"), "h200")
    assert (h200["minReplicas"], h200["maxReplicas"]) == (8, 16)
    pod = one(overlay("nvidia"), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True


def test_monitoring_can_be_left_out():
    kinds = {item["kind"] for item in render(config(monitoring_namespace=None))}
    assert not kinds & {"PodMonitor", "PrometheusRule"}
    assert len(objects(config(monitoring_namespace=None), "ConfigMap")) == 1


def test_dashboards_and_rules_are_those_of_the_repository():
    rules = one(config(), "PrometheusRule")["spec"]["groups"]
    assert any(rule.get("alert") == "ExpertMeshNotReady" for g in rules for rule in g["rules"])
    labelled = [
        c for c in objects(config(), "ConfigMap") if "grafana_dashboard" in c["metadata"]["labels"]
    ]
    assert len(labelled) >= 4


@pytest.mark.parametrize("folder", ["/m/int8", "/model/int8"])
def test_a_pools_own_checkpoint_lies_below_the_models_folder(folder):
    pool = {"vendor": "cpu", "checkpoint": folder, "checkpoint_tolerance": 0.1}
    said = yaml.safe_dump({"model": {"path": "/m"}, "pools": {"c": pool}})
    assert str(in_cluster(config(said)).pools["c"].checkpoint) == "/model/int8"


@pytest.mark.parametrize(
    ("text", "kubernetes", "words"),
    [
        ("mesh: {name: 7seas}", {}, "begin it with a letter"),
        ("pools: {engine: {vendor: cpu}}", {}, "rename the pool"),
        (
            "router: {between_nodes_security: encrypted, tls_certificate: /c.pem}",
            {},
            "router.tls_certificate",
        ),
        (
            "pools: {c: {vendor: cpu, checkpoint: /n, checkpoint_tolerance: 0.1}}",
            {},
            "pools.c.checkpoint /n is a folder that pods do not have",
        ),
    ],
)
def test_what_kubernetes_cannot_have_is_one_clear_line(text, kubernetes, words):
    said = {"model": {"path": "/m"}, "pools": {"c": {"vendor": "cpu"}}} | yaml.safe_load(text)
    with pytest.raises(UserError, match=words) as error:
        render(config(yaml.safe_dump(said), **kubernetes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("pods: {h20: {}}", "pods.h20 is no pool of this mesh: did you mean h200?"),
        ("image: mesh:latest", "has no fixed version"),
        ("image: registry:5000/mesh", "has no fixed version"),
        ("redis_secret: redis", "redis_secret needs redis_address"),
        ("namespase: x", "did you mean kubernetes.namespace?"),
    ],
)
def test_mistakes_in_the_config_are_named(lines, words, tmp_path):
    file = tmp_path / "mesh.yaml"
    pools = "pools: {h200: {vendor: nvidia, device: cuda}}"
    file.write_text(f"model: {{path: /m}}\n{pools}\nkubernetes:\n  {lines}\n")
    with pytest.raises(UserError) as error:
        load_config(file)
    assert words in str(error.value)
