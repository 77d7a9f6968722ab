"""The manifest for KubeRay in docs/serving.md, against the schema of its custom resource.

data/kuberay_rayservice.json is what the manifest uses of ray-operator/config/crd/bases/ray.io_rayservices.yaml, version
v1, of KubeRay at feeaf72 (August 2026). Names that are not in it are refused there, which Kubernetes would drop in
silence. A new field of the manifest is looked up in that file and added here.
"""

import copy
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("jsonschema_rs", reason="of the extra `test-serve`")

import jsonschema_rs
import yaml

DOCS = Path(__file__).parents[1] / "docs" / "serving.md"
SCHEMA = Path(__file__).parent / "data" / "kuberay_rayservice.json"


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load(re.search(r"```yaml\n(apiVersion: ray.io/v1.*?)```", DOCS.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def validator():
    return jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()))


def test_the_manifest_is_of_the_published_schema(manifest, validator):
    assert [str(error) for error in validator.iter_errors(manifest)] == []


def test_a_wrong_manifest_is_not(manifest, validator):
    for change, said in (
        (lambda group: group.update(numOfHost=4), "numOfHost"),
        (lambda group: group.update(numOfHosts="4"), "integer"),
        (lambda group: group["template"]["spec"].update(containers={}), "array"),
    ):
        wrong = copy.deepcopy(manifest)
        change(wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0])
        assert said in str([str(error) for error in validator.iter_errors(wrong)])


def test_the_slice_of_the_manifest_has_the_hosts_of_its_topology(manifest):
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (app,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    width, height = map(int, app["args"]["topology"].split("x"))
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert width * height == group["numOfHosts"] * int(limits["google.com/tpu"])
    assert group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == app["args"]["topology"]
