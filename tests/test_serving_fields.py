"""Fields of a request that hold several things: their files, names and prompts, as JSON and as forms."""

import io

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, CREATE, GENERATE, Site, create, data_url, files_of, picture, refused
from test_controlnet import drawn_controlnet
from test_tora import SMALL, drawn_files

from cogvx_jax.configs import ControlNetConfig
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.serving.adapters import Adapters, find_parts
from cogvx_jax.serving.making import Maker, request_of
from cogvx_jax.serving.worker import Progress

NET = ControlNetConfig(layers=1, heads=3, head_dim=16, text_dim=16, time_dim=16, latent_channels=4)
STEPS = {"50%": "a blue star"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    drawn_controlnet(folder / "nets" / "depth", NET, 1)
    drawn_files(folder / "toras" / "open", SMALL, 7)
    (folder / "calibrations").mkdir()
    named = dict(controlnet=folder / "nets", tora=folder / "toras", calibration=folder / "calibrations")
    return find_parts(**named)


@pytest.fixture(scope="module")
def sites(tmp_path_factory, small, parts):
    """kind -> a server of a small model without a worker."""
    made = {}

    def site(kind):
        if kind not in made:
            how = dict(spec=small(kind)[1].spec, parts=parts)
            made[kind] = Site(tmp_path_factory.mktemp("site"), works=False, **how)
        return made[kind]

    yield site
    for one in made.values():
        one.close()


@pytest.fixture
def site(sites):
    return sites("5b")


@pytest.fixture
def client(site):
    with httpx.Client(base_url=site.url, timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(file, fps=8) as writer:
        writer.write(np.random.default_rng(1).integers(0, 255, (9, 32, 48, 3), np.uint8))
    return file.read_bytes()


def array(shape=(8, 16, 24, 2)):
    file = io.BytesIO()
    np.save(file, np.ones(shape, np.float32))
    return file.getvalue()


def kept(site, video):
    """What the worker reads."""
    return site.queue.get(video["id"]).asked


def form(site, *parts):
    """Sends fields and files of a form: pairs of a name and text, or a name and (file's name, bytes)."""
    several = [(name, (None, value) if isinstance(value, str) else value) for name, value in parts]
    answer = httpx.post(site.url + CREATE, files=[("prompt", (None, CIRCLE)), *several])
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("travel", [STEPS, "50%=a blue star", ["50%=a blue star"]])
def test_prompts_that_follow(site, client, travel):
    assert kept(site, create(client, travel=travel))["options"]["travel"] == STEPS


def test_prompts_that_follow_in_a_form(site):
    found = form(site, ("travel", "50%=a blue star"), ("travel", "100%=night"))
    assert kept(site, found)["options"]["travel"] == STEPS | {"100%": "night"}
    found = form(site, ("travel", '{"50%": "a blue star"}'))
    assert kept(site, found)["options"]["travel"] == STEPS


def test_regions_are_boxes_and_pictures(site, client):
    white = data_url(picture())
    video = create(client, region=[[[0, 0, 0.5, 1], "a star"], [{"image_url": white}, "a moon"], "0.5,0,1,1=a tree"])
    assert kept(site, video)["options"]["region"] == [
        [[0, 0, 0.5, 1], "a star"],
        ["region.png", "a moon"],
        [[0.5, 0.0, 1.0, 1.0], "a tree"],
    ]
    assert files_of(site.store.folder_of(video["id"])) == ["region.png"]


def test_files_of_a_form_are_named_by_other_fields(sites):
    site, (a, b) = sites("inpaint"), (picture(), picture("JPEG"))
    files = [("files", ("b.png", a)), ("files", ("c.png", b))]
    video = form(site, ("keyframes", "0=b.png,8=c.png"), *files)
    asked, folder = kept(site, video), site.store.folder_of(video["id"])
    assert asked["options"]["keyframes"] == {"0": "keyframes-0.png", "8": "keyframes-1.jpg"}
    assert (folder / "keyframes-1.jpg").read_bytes() == b
    own = Options(
        keyframes={0: folder / "keyframes-0.png", 8: folder / "keyframes-1.jpg"}, seed=asked["options"]["seed"]
    )
    spec = site.service.spec
    assert request_of(spec, asked, folder).digest() == check_request(spec, CIRCLE, own).digest()
    refused(httpx.post(site.url + CREATE, files=[("prompt", (None, "x")), *files[:1]]), 400, words="no field names")


def test_flows(site, client):
    video = form(site, ("flow", ("f.npy", array())))
    assert kept(site, video)["options"]["flow"].startswith("flow.npy:")
    video = form(site, ("flow", "f.npy:cell=16,degradation=0.25"), ("files", ("f.npy", array())))
    assert kept(site, video)["options"]["flow"] == "flow.npy:degradation=0.25,frames=nearest,cell=16"
    url = data_url(array(), "application/octet-stream")
    video = create(client, flow=f"{url}:cell=8")
    assert kept(site, video)["options"]["flow"].endswith("cell=8")


@pytest.mark.parametrize(
    "controlnet", ["depth:0.5", {"name": "depth", "weight": 0.5}, [{"name": "depth", "scale": 0.5}]]
)
def test_controlnets_are_named(site, client, clip, controlnet):
    url = data_url(clip, "video/mp4")
    video = create(client, controlnet=controlnet, control=url, control_strength=[0.5])
    options = kept(site, video)["options"]
    assert (options["controlnet"], options["control"], options["control_strength"]) == (
        ["depth:0.5"],
        "control.mp4",
        [0.5],
    )
    video = create(client, controlnet=["depth", "depth"], control=[url, url])
    assert kept(site, video)["options"]["control"] == ["control-0.mp4", "control-1.mp4"]


@pytest.mark.parametrize("trajectory", ["60,128 200,128", [[60, 128], [200, 128]], data_url(b"60,128\n200,128\n")])
def test_trajectories(site, client, trajectory):
    video = create(client, trajectory=trajectory, tora={"name": "open", "weight": 0.5})
    assert kept(site, video)["options"]["tora"] == "open:0.5"
    asked, folder = kept(site, video), site.store.folder_of(video["id"])
    motion = request_of(site.service.spec, asked, folder, site.service.parts).motion
    assert motion.trajectories == (((60, 128), (200, 128)),) and motion.weight == 0.5


BAD = [
    ({"travel": 3}, "travel", "places and their prompts"),
    ({"travel": {}}, "travel", "places of one kind"),
    ({"travel": {"50%": 3}}, "travel", "must be text"),
    ({"travel": {"50%": "x" * 10001}}, "travel", "10,000"),
    ({"travel": ["24=a", "50%=b"]}, "travel", "places of one kind"),
    ({"travel": "8=a"}, "travel", "windows shorter"),
    ({"region": "/etc/passwd=x"}, "region", "no picture or video|base64"),
    ({"region": [["0,0,1,1"]]}, "region", "place and its prompt"),
    ({"region": [[[0, 0, 2, 1], "x"]]}, "region", "a box is"),
    ({"region": [[[0, 0, 0.01, 0.01], "x"]]}, "region", "covers no token"),
    ({"region": [[data_url(b"<svg/>"), "x"]]}, "region", "no picture or video"),
    ({"region": [[{"file_id": "x"}, "x"]]}, "region", "a region is"),
    ({"keyframes": {"x": data_url(picture())}}, "keyframes", "frames and their pictures"),
    ({"keyframes": {"0": "/etc/passwd"}}, "keyframes", "base64"),
    ({"keyframes": {"0": data_url(picture())}}, None, "takes no keyframes"),
    ({"flow": "/etc/passwd"}, "flow", "base64"),
    ({"flow": data_url(picture())}, "flow", "is a picture; give a .npy file"),
    ({"flow": data_url(array((2, 2)))}, "flow", "is a flow of"),
    ({"noises": data_url(b"\x93NUMPY" + bytes(20))}, "noises", "no .npy file"),
    ({"noises": 3}, "noises", "must be a path"),
    ({"control": "https://example.com/a.mp4"}, "control", "not fetched"),
    ({"control": data_url(picture())}, "control", "is a picture"),
    ({"controlnet": "none"}, "controlnet", "no ControlNet 'none' here; there are depth"),
    ({"controlnet": "depth"}, "controlnet", "needs the video"),
    ({"controlnet": {"path": "/etc"}}, "controlnet", "must have name"),
    ({"controlnet": ["depth"] * 17}, "controlnet", "at most 16"),
    ({"controlnet": "depth:1e9"}, "controlnet", "from -100 to 100"),
    ({"tora": "/etc/passwd", "trajectory": "1,1 2,2"}, None, "no Tora '/etc/passwd' here; there are open"),
    ({"tora": "open"}, "tora", "trajector"),
    ({"trajectory": "1,1 999,2", "tora": "open"}, None, "canvas"),
    ({"trajectory": "../secret.txt", "tora": "open"}, "trajectory", "base64"),
    ({"calibration": "../x", "reuse": "magcache:0.1"}, None, "no calibration"),
    ({"control_strength": ["x"]}, "control_strength", "must be a number"),
    ({"files": ["a"]}, "files", "those of a form"),
]


@pytest.mark.parametrize("fields, param, words", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_is_refused(site, fields, param, words):
    before = site.store.ids()
    answer = httpx.post(site.url + CREATE, json={"prompt": "x"} | fields)
    assert refused(answer, 400, words=words)["param"] == param or param is None, answer.text
    if "files" not in fields:  # of forms, which Zhipu's API has not
        theirs = httpx.post(site.url + GENERATE, json={"prompt": "x", "model": "cogvideox-3"} | fields)
        assert theirs.status_code == 400 and set(theirs.json()["error"]) == {"code", "message"}, theirs.text
        assert theirs.json()["error"]["message"] == answer.json()["error"]["message"]
    places = [str(part.folder) for part in site.service.parts.values()]
    assert not any(place in answer.text for place in (str(site.store.folder), *places))
    assert site.store.ids() == before


def test_zhipu_takes_them_too(site):
    fields = {"prompt": CIRCLE, "model": "cogvideox-3", "travel": STEPS}
    answer = httpx.post(site.url + GENERATE, json=fields)
    assert kept(site, answer.json())["options"]["travel"] == STEPS


def test_files_stand_only_where_they_may(site):
    for name, words in (("keyframes", "must be no file"), ("tora", "must be no file")):
        answer = httpx.post(site.url + CREATE, files=[("prompt", (None, "x")), (name, ("a", b"1"))])
        refused(answer, 400, words=words)
    twice = [("prompt", (None, "x")), *[("files", ("a.png", picture()))] * 2]
    refused(httpx.post(site.url + CREATE, files=twice), 400, words="name of its own")


def test_what_a_job_may_name_is_listed(client):
    found = client.get("/models").json()
    assert (found["controlnets"], found["toras"], found["calibrations"]) == (["depth"], ["open"], [])


def test_a_row_names_no_path_of_the_worker(site):
    """Also where a row was not written by the server."""
    for options in ({"flow": "/etc/passwd"}, {"region": [["/etc/passwd", "x"]]}, {"video": "/etc/passwd"}):
        with pytest.raises(ValueError, match="no file of this job"):
            request_of(site.service.spec, {"prompt": "x", "options": options}, site.store.folder)


@pytest.mark.full  # a model is compiled
def test_the_video_follows_and_its_record_tells_no_place(site, client, clip, small, parts, tmp_path):
    from cogvx_jax.pipelines.record import read_record

    video = create(client, controlnet="depth:0.5", control=data_url(clip, "video/mp4"), seed=3)
    job, folder = site.queue.get(video["id"]), site.store.folder_of(video["id"])
    Maker(small("5b")[1], Adapters(None), parts=parts)(job, folder, tmp_path / "a.mp4", Progress())
    record = read_record(tmp_path / "a.mp4")
    assert (record.options["controlnet"], record.options["control"]) == (["depth:0.5"], "control.mp4")
    assert str(folder) not in record.text and str(parts["controlnet"].folder) not in record.text
