"""Weights in and out: golden set 13, round trips, and files that are damaged, cut, foreign or hostile."""
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from networks.cam import CAMNet
from networks.pretrained import load_weights, official_state, read_params
from tests.conftest import other_weights, write_params

WIDTH = 1 / 32
LAYOUTS = ("legacy0", "legacy1", "mxnet191")
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def net():
    return CAMNet(num_classes=4, width=WIDTH)


@pytest.fixture
def state():
    return other_weights(WIDTH)


def assert_equal(net, state):
    now = official_state(net)
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)


# ---- .params ----

@pytest.mark.parametrize("layout", LAYOUTS)
def test_params_of_each_layout(golden, layout):
    arrays = read_params(golden(f"set13_small_{layout}.params"))
    with np.load(golden("set13_small_arrays.npz")) as expected:
        assert [name.replace(":", "|") for name in arrays] == list(expected)
        for name, array in arrays.items():
            assert array.dtype == np.float32 and array.flags.writeable
            np.testing.assert_array_equal(array, expected[name.replace(":", "|")])


def test_params_full_list(golden):
    table = json.loads(golden("set13_key_mapping.json").read_text())
    arrays = read_params(golden("set13_fullkeys_mxnet191.params"))
    assert list(arrays) == table["order_in_file"]
    assert {name: array.item() for name, array in arrays.items()} == table["value_of_key"]


def test_params_names_become_the_authors(golden, net, state, tmp_path):
    table = json.loads(golden("set13_key_mapping.json").read_text())
    arrays = {name: state[ours].numpy() for name, ours in table["mapping"].items()}
    arrays |= {name: np.ones((3, 2), np.float32) for name in table["dropped"]}
    arrays["arg:conv9_gamma"] = np.ones(2, np.float32)
    fresh = official_state(net)["fc8.weight"].clone()
    report = load_weights(net, write_params(tmp_path / "resnet.params", arrays), head="skip")
    assert sorted(report["loaded"]) == sorted(table["mapping"].values())
    assert report["new"] == ["fc8.weight"] and report["unused"] == ["arg:conv9_gamma"]
    assert_equal(net, state | {"fc8.weight": fresh})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_params_cut_anywhere(golden, tmp_path, layout):
    data = golden(f"set13_small_{layout}.params").read_bytes()
    path = tmp_path / "cut.params"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut.params.*fetch it again"):
            read_params(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="1 bytes follow"):
        read_params(path)


@FUZZ
@given(layout=st.sampled_from(LAYOUTS), where=st.integers(0, 1 << 20), values=st.binary(min_size=1, max_size=9))
def test_params_altered_anywhere(golden, tmp_path, layout, where, values):
    data = bytearray(golden(f"set13_small_{layout}.params").read_bytes())
    where %= len(data)
    data[where:where + len(values)] = values
    path = tmp_path / "altered.params"
    path.write_bytes(data)
    try:
        arrays = read_params(path)
    except ValueError as error:
        assert "altered.params" in str(error)
    else:
        assert len(arrays) == 13 and sum(array.nbytes for array in arrays.values()) < len(data)


@FUZZ
@given(data=st.binary(max_size=200), head=st.booleans())
def test_params_of_noise(tmp_path, data, head):
    path = tmp_path / "noise.params"
    path.write_bytes(struct.pack("<QQQ", 0x112, 0, 2) * head + data)
    with pytest.raises(ValueError, match="noise.params"):
        read_params(path)


# Each case damages the first array (or a name) of a file: offset, format, value, what the message says.
DAMAGE = {
    "another kind of file": ("legacy0", 0, "Q", 0x113, "does not begin as"),
    "storage type": ("mxnet191", 28, "i", 1, "storage type 1"),
    "no dimensions": ("mxnet191", 32, "I", 0, "0 dimensions"),
    "many dimensions": ("legacy1", 28, "I", 2**32 - 1, "4294967295 dimensions"),
    "negative dimension": ("legacy1", 32, "q", -5, "the shape"),
    "huge dimension": ("legacy1", 32, "q", 2**62, "bytes are announced"),
    "huge dimension of 2016": ("legacy0", 28, "I", 2**32 - 1, "bytes are announced"),
    "unknown type": ("legacy0", 52, "i", 99, "unknown type 99"),
    "more arrays": ("legacy0", 16, "Q", 2**64 - 1, "no complete"),
    "fewer arrays": ("legacy0", 16, "Q", 12, "one name for each array"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_params_damage_is_named(golden, tmp_path, case):
    layout, offset, code, value, message = DAMAGE[case]
    data = bytearray(golden(f"set13_small_{layout}.params").read_bytes())
    struct.pack_into(f"<{code}", data, offset, value)
    path = tmp_path / "damaged.params"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_params(path)


def test_params_names_are_text_and_unique(golden, tmp_path):
    data = golden("set13_small_legacy0.params").read_bytes()
    path = tmp_path / "names.params"
    path.write_bytes(data.replace(b"arg:linear1000_weight", b"arg:linear1000_weigh\xff"))
    with pytest.raises(ValueError, match="not text"):
        read_params(path)
    write_params(path, {"arg:a": np.ones(1), "arg:b": np.ones(1)})
    path.write_bytes(path.read_bytes().replace(b"arg:b", b"arg:a"))
    with pytest.raises(ValueError, match="there twice"):
        read_params(path)


# ---- names, round trips ----

def test_official_names(golden):
    keys = json.loads(golden("set01_keys_occse.json").read_text())["Net_er"]
    net = CAMNet(width=WIDTH).requires_grad_(True)
    state = official_state(net)
    assert list(state) == [name for name, _ in keys]
    assert all(value.is_contiguous() and not value.requires_grad for value in state.values())


def own_names(state):
    return {name if name == "fc8.weight" else f"backbone.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("form", [dict, own_names,
                                  lambda state: {f"module.{name}": value for name, value in state.items()},
                                  lambda state: {f"module.{name}": v for name, v in own_names(state).items()},
                                  lambda state: {name: value.double().numpy() for name, value in state.items()}])
def test_round_trip(net, state, form):
    report = load_weights(net, form(state))
    assert report == {"loaded": list(state), "new": [], "unused": []}
    assert_equal(net, state)


@pytest.mark.parametrize("save", ["zip", "old", "safetensors"])
def test_round_trip_through_a_file(net, state, tmp_path, save):
    path = tmp_path / ("w.safetensors" if save == "safetensors" else "w.pth")
    if save == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=save == "zip")
    assert set(load_weights(net, path)["loaded"]) == set(state)
    assert_equal(net, state)


def test_num_batches_tracked_may_be_missing(net, state):
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert load_weights(net, old) == {"loaded": list(old), "new": [], "unused": []}


def test_leftovers_are_listed(net, state):
    assert load_weights(net, state | {"fc9.weight": torch.ones(2)})["unused"] == ["fc9.weight"]


# ---- what does not fit ----

def test_head_of_another_shape(net, state):
    fresh = official_state(net)["fc8.weight"].clone()
    state["fc8.weight"] = torch.ones(9, *fresh.shape[1:])
    with pytest.raises(ValueError, match=r"fc8.weight is of shape \(9, 128, 1, 1\).*\(4, 128, 1, 1\).*classes"):
        load_weights(net, state)
    report = load_weights(net, state, head="skip")
    assert report["new"] == report["unused"] == ["fc8.weight"]
    assert_equal(net, state | {"fc8.weight": fresh})


def test_head_missing(net, state):
    del state["fc8.weight"]
    with pytest.raises(ValueError, match="fc8.weight is missing"):
        load_weights(net, state)
    assert load_weights(net, state, head="skip")["new"] == ["fc8.weight"]


def test_head_that_fits_is_loaded_also_with_skip(net, state):
    assert load_weights(net, state, head="skip")["new"] == []
    assert_equal(net, state)


def test_head_is_one_of_two_words(net, state):
    with pytest.raises(ValueError, match="head must be"):
        load_weights(net, state, head=True)


@pytest.mark.parametrize("head", ["require", "skip"])
def test_other_width(net, head, tmp_path):
    torch.save(official_state(CAMNet(num_classes=4, width=2 * WIDTH)), tmp_path / "wide.pth")
    message = r"wide.pth: conv1a.weight is of shape \(4, 3, 3, 3\).*\(2, 3, 3, 3\).*width"
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "wide.pth", head=head)


@pytest.mark.parametrize("head", ["require", "skip"])
def test_backbone_tensor_missing(net, state, head):
    del state["b4_3.conv_branch2a.weight"]
    with pytest.raises(ValueError, match=r"b4_3.conv_branch2a.weight is missing.*\(16, 16, 3, 3\)"):
        load_weights(net, state, head=head)


def test_a_bare_backbone_has_no_head(state):
    backbone = CAMNet(width=WIDTH).backbone
    assert load_weights(backbone, state)["unused"] == ["fc8.weight"]
    del state["bn7.bias"]
    with pytest.raises(ValueError, match="bn7.bias is missing"):
        load_weights(backbone, state, head="skip")


@pytest.mark.parametrize(("name", "value", "message"), [
    ("fc8.weight", float("nan"), "not finite"),
    ("b6.conv_branch2b2.weight", float("inf"), "not finite"),
    ("b3.bn_branch2a.running_var", -1e-5, "below zero"),
    ("bn7.running_var", -1e-3, "below zero"),
])
def test_damaged_values_and_nothing_is_copied(net, state, tmp_path, name, value, message):
    before = {key: tensor.clone() for key, tensor in official_state(net).items()}
    state[name].view(-1)[-1] = value
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=f"bad.pth: {name} .*{message}"):
        load_weights(net, tmp_path / "bad.pth", head="skip")
    assert_equal(net, before)


def test_a_double_too_large_for_a_float_is_not_finite(net, state):
    state["conv1a.weight"] = state["conv1a.weight"].double() + 1e300
    with pytest.raises(ValueError, match="conv1a.weight .*not finite"):
        load_weights(net, state)


@pytest.mark.parametrize("value", [3.0, "text", np.array(["a"]), np.array([1j]), torch.eye(2).to_sparse()])
def test_entries_that_are_no_plain_numbers(net, state, value):
    with pytest.raises(ValueError, match="dict of weights: entry 'x' is no tensor"):
        load_weights(net, state | {"x": value})


def test_a_name_in_two_forms(net, state):
    with pytest.raises(ValueError, match="conv1a.weight is there twice"):
        load_weights(net, state | {"backbone.conv1a.weight": state["conv1a.weight"]})


# ---- files that are no weights ----

class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_in_a_pth_does_not_run(net, state, tmp_path, zipped):
    torch.save(state | {"x": Program(tmp_path / "ran")}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="w.pth: holds a program"):
        load_weights(net, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_pth(net, state, tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in (0, 1, 3, 100, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="w.pth: cut short"):
            load_weights(net, path)


def test_a_changed_bit_in_a_pth(net, state, tmp_path):
    """torch looks at no check sum."""
    path = tmp_path / "w.pth"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[data.index(state["fc8.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="w.pth: cut short, damaged"):
        load_weights(net, path)


def test_a_packed_pth(net, state, tmp_path):
    """torch.save does not pack, and what is packed may be a thousand times as large."""
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="w.pth: cut short, damaged"):
        load_weights(net, tmp_path / "w.pth")


@pytest.mark.parametrize("where", [b"K\x06Nt", b"K\x06\x85"])
def test_an_old_pth_that_announces_much(net, tmp_path, where):
    """It is refused before room is made for 2^30 numbers in a storage, or in a tensor of it."""
    path = tmp_path / "w.pth"
    torch.save({"x": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(where) == 1
    path.write_bytes(data.replace(where, b"J" + struct.pack("<i", 2**30) + where[2:]))
    with pytest.raises(ValueError, match="w.pth: cut short, damaged") as error:
        load_weights(net, path)
    assert "announces more than it holds" in str(error.value.__cause__)


def test_a_cut_safetensors(net, state, tmp_path):
    path = tmp_path / "w.safetensors"
    pytest.importorskip("safetensors.torch").save_file(state, path)
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) - 4):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="w.safetensors: not a complete"):
            load_weights(net, path)


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "a list, not a dict"),
    ({"weights": {"conv1a.weight": torch.ones(1)}}, "conv1a.weight is of shape"),
    ({"conv1a.weight": torch.ones(1, dtype=torch.complex64)}, "'conv1a.weight' is no tensor"),
    ({"conv1a.weight": torch.ones(1, device="meta")}, "'conv1a.weight' is no tensor"),
    ({3: torch.ones(1)}, "3 is no tensor"),
])
def test_a_pth_that_is_no_state_dict(net, tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth: .*{message}"):
        load_weights(net, tmp_path / "w.pth")


def test_no_file_and_an_unknown_kind(net, tmp_path):
    for name in ("nothing.pth", "nothing.params", "nothing"):
        with pytest.raises(FileNotFoundError, match=f"no file .*{name}; pretrained/README.md"):
            load_weights(net, tmp_path / name)
    (tmp_path / "w.txt").write_text("weights")
    with pytest.raises(ValueError, match="w.txt: weights are a .params"):
        load_weights(net, tmp_path / "w.txt")
