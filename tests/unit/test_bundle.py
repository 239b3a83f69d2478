"""Bundles: what is saved is what is loaded, and anything else is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

import zcontext.bundle
from tiny import tiny_base, tiny_focused, tiny_z
from zcontext.bundle import (
    MANIFEST,
    fill,
    load_bundle,
    read_manifest,
    read_parts,
    replace_infer,
    save_bundle,
)
from zcontext.bundles import find_bundle
from zcontext.compressor import ZCompressor
from zcontext.errors import BundleError
from zcontext.readers import ZDecompressor
from zcontext.sealing import PARTS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    model = tiny_z()
    save_bundle(model, folder, card="# A card", training={"steps": 3})
    return folder, model


@pytest.fixture
def bundle(saved, tmp_path, monkeypatch):
    """A copy that a test may damage; the base it names is the tiny one."""
    import shutil

    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    return shutil.copytree(saved[0], tmp_path / "copy")


def rewrite(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.update(changes)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_saving_and_loading_keeps_codec_and_outputs(saved, bundle):
    loaded = load_bundle(bundle)
    model = saved[1]
    assert loaded.codec == model.codec
    text = "A text of some length, 42 words or so."
    one, other = ZCompressor(model).compress(text), ZCompressor(loaded).compress(text)
    assert one == other
    assert ZDecompressor(model).decompress(one) == ZDecompressor(loaded).decompress(other)


def test_saving_what_was_loaded_gives_the_same_bytes(bundle, tmp_path):
    save_bundle(load_bundle(bundle), tmp_path / "again", training={"steps": 3})
    for part in PARTS:
        name = f"{part}.safetensors"
        assert (bundle / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_codes_that_are_names_are_kept_as_tokens(bundle, tmp_path):
    model = tiny_z(size=257, named=True)
    save_bundle(model, tmp_path / "named")
    stored = read_parts(tmp_path / "named", ("codebook",))["codebook"]
    assert "rows" not in stored
    assert stored["named"][:, 0].tolist() == [-1, *range(3, 259)]
    assert set(stored["named"][:, 1:].flatten().tolist()) == {-1}
    loaded = load_bundle(tmp_path / "named")
    assert loaded.codec == model.codec
    assert loaded.codebook.lexicon.codes == model.codebook.lexicon.codes
    text = "A text of some length, 42 words or so."
    one, other = ZCompressor(model).compress(text), ZCompressor(loaded).compress(text)
    assert one == other
    # Every token of a text is there by name: three a symbol, at a ratio of three.
    text = "A text of 42 bytes, which is 14 times three"[:42]
    whole = ZCompressor(model).compress(text, ratio=3.0)
    named = model.codebook.lexicon.tokens_of(whole.symbols.codes)
    assert model.tokenizer.decode(named) == text


@pytest.mark.parametrize("token", [-2, 259, 2**20])
def test_a_name_of_no_token_of_the_base_is_refused(bundle, tmp_path, token):
    model = tiny_z(size=257, named=True)
    save_bundle(model, tmp_path / "named")
    parts = read_parts(tmp_path / "named", ("codebook",))
    parts["codebook"]["named"][7] = token
    with pytest.raises(BundleError, match="name tokens beyond the base's 259"):
        fill(tiny_z(size=257, named=True), parts)


def test_the_manifest_names_the_base_and_every_part(saved):
    manifest = read_manifest(saved[0])
    assert manifest["base"] == {"name": "tiny-0", "sha256": "0" * 64}
    assert manifest["training"] == {"steps": 3}
    for part, entry in manifest["parts"].items():
        data = (saved[0] / f"{part}.safetensors").read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data)}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_part_is_refused(bundle, part, damage):
    path = bundle / f"{part}.safetensors"
    data = path.read_bytes()
    if damage == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with pytest.raises(BundleError, match=part):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', "\xff", '{"format": true}', "[" * 100_000]
)
def test_a_manifest_that_is_none_is_refused(bundle, text):
    (bundle / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        load_bundle(bundle)


def test_a_bundle_of_another_format_or_with_other_parts_is_refused(bundle):
    manifest = read_manifest(bundle)
    rewrite(bundle, format=99)
    with pytest.raises(BundleError, match="format 99"):
        load_bundle(bundle)
    rewrite(bundle, format=manifest["format"], parts={"codebook": {}})
    with pytest.raises(BundleError, match="parts"):
        load_bundle(bundle)


def test_a_bundle_made_for_another_base_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base(seed=1))
    with pytest.raises(BundleError, match=r"another|made for the base"):
        load_bundle(bundle)


def test_a_manifest_that_names_another_codec_is_refused(bundle):
    rewrite(bundle, codec="0" * 64)
    with pytest.raises(BundleError, match="codec"):
        load_bundle(bundle)


def test_a_config_that_does_not_fit_the_parts_is_refused(bundle):
    config = dict(read_manifest(bundle)["config"])
    rewrite(bundle, config={**config, "depth": config["depth"] + 1})
    with pytest.raises(BundleError, match="codebook"):
        load_bundle(bundle)
    rewrite(bundle, config={**config, "depth": 0})
    with pytest.raises(BundleError, match="config"):
        load_bundle(bundle)


def test_a_part_whose_digest_was_rewritten_still_needs_the_right_tensors(bundle):
    """The planted fault: digests alone would let a swapped part through."""
    data = (bundle / "infer.safetensors").read_bytes()
    (bundle / "compress.safetensors").write_bytes(data)
    manifest = read_manifest(bundle)
    manifest["parts"]["compress"] = manifest["parts"]["infer"]
    rewrite(bundle, parts=manifest["parts"])
    with pytest.raises(BundleError, match="compress"):
        load_bundle(bundle)


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no bundle"):
        read_manifest(tmp_path)


def test_nothing_of_the_users_is_replaced(tmp_path, saved):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BundleError, match="not empty"):
        save_bundle(saved[1], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_saving_over_a_bundle_keeps_its_card(bundle):
    save_bundle(load_bundle(bundle), bundle)
    assert (bundle / "README.md").read_text() == "# A card"
    assert sorted(p.name for p in bundle.parent.iterdir()) == [bundle.name]


def test_a_save_that_fails_leaves_the_old_bundle_whole(bundle, monkeypatch):
    before = read_manifest(bundle)
    model = load_bundle(bundle)

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zcontext.bundle, "_write_parts", no_space)
    with pytest.raises(BundleError, match="No space left"):
        save_bundle(model, bundle)
    assert read_manifest(bundle) == before
    read_parts(bundle)


def test_some_parts_can_be_filled_alone(saved):
    model = tiny_z(seed=3)
    fill(model, read_parts(saved[0], ["infer"]))
    for name, tensor in saved[1].adapters.state("infer").items():
        assert torch.equal(tensor, model.adapters.state("infer")[name])


def test_another_infer_is_put_in_and_the_codec_stays(saved, tmp_path):
    model = tiny_z()
    for parameter in model.adapters.named_parameters("infer").values():
        parameter.data.zero_()
    codec = model.codec
    replace_infer(model, saved[0] / "infer.safetensors")
    for name, tensor in saved[1].adapters.state("infer").items():
        assert torch.equal(tensor, model.adapters.state("infer")[name])
    assert model.codec == codec
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    for file, told in (
        (tmp_path / "none.safetensors", "trained bundle"),
        (broken, "not a safetensors file"),
        (saved[0] / "codebook.safetensors", "does not fit"),
    ):
        with pytest.raises(BundleError, match=told):
            replace_infer(model, file)


def test_a_bundle_is_found_by_folder_by_name_and_by_environment(saved, tmp_path, monkeypatch):
    import zcontext.bundles

    monkeypatch.delenv("ZCONTEXT_BUNDLE", raising=False)
    monkeypatch.setattr(zcontext.bundles, "bundle_folders", lambda: (saved[0].parent,))
    assert find_bundle(saved[0]) == saved[0]
    assert find_bundle("tiny") == saved[0]
    with pytest.raises(BundleError, match="tiny"):
        find_bundle("nowhere")
    with pytest.raises(BundleError, match="ZCONTEXT_BUNDLE"):
        find_bundle()
    monkeypatch.setenv("ZCONTEXT_BUNDLE", os.fspath(saved[0]))
    assert find_bundle() == saved[0]
    monkeypatch.setenv("ZCONTEXT_BUNDLE", os.fspath(tmp_path / "gone"))
    with pytest.raises(BundleError, match="from ZCONTEXT_BUNDLE"):
        find_bundle()
    assert find_bundle("tiny") == saved[0]


def test_the_mean_of_infer_adapters_goes_into_a_bundle_whose_codec_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    path = Path(__file__).parents[2] / "scripts" / "average_part.py"
    spec = importlib.util.spec_from_file_location("average_part", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = tiny_focused()
    save_bundle(model, tmp_path / "one", card="# A card", training={"read": {"steps": 3}})
    with torch.no_grad():
        for parameter in model.parameters_of(("infer",)).values():
            parameter.add_(1.0)
    save_bundle(model, tmp_path / "other")
    before = {part: (tmp_path / "one" / f"{part}.safetensors").read_bytes() for part in PARTS}
    paths = [str(tmp_path / name) for name in ("one", "one", "other/infer.safetensors")]
    with pytest.raises(SystemExit, match="3 weights for 2 of a part"):
        script.main([*paths, "--weights", "1", "2", "3"])
    script.main([*paths, "--weights", "1", "3", "--enough", "7", "--pairs", "0.5"])
    for part in PARTS:
        now = (tmp_path / "one" / f"{part}.safetensors").read_bytes()
        assert (now == before[part]) == (part != "infer")
    loaded = load_bundle(tmp_path / "one")
    assert loaded.codec == model.codec
    assert loaded.focus is not None
    assert int(loaded.focus.enough) == 7
    pairs = zip(
        loaded.parameters_of(("infer",)).values(),
        model.parameters_of(("infer",)).values(),
        strict=True,
    )
    for mean, other in pairs:
        torch.testing.assert_close(mean, other - 0.25, atol=2e-3, rtol=0)
    manifest = read_manifest(tmp_path / "one")
    assert manifest["training"] == {"read": {"steps": 3, "mean_of": [1.0, 3.0]}}
    told = {"stage": "focus", "steps": 5}
    with torch.no_grad():
        model.focus.out.bias.add_(2.0)
    save_bundle(model, tmp_path / "other", training=told)
    script.main(
        [str(tmp_path / "one"), str(tmp_path / "one"), str(tmp_path / "other"), "--part", "focus"]
    )
    again = load_bundle(tmp_path / "one")
    torch.testing.assert_close(again.focus.out.bias, model.focus.out.bias - 1.0, atol=2e-3, rtol=0)
    assert (int(again.focus.enough), float(again.focus.pairs)) == (7, 0.5)
    manifest = read_manifest(tmp_path / "one")
    assert manifest["training"]["focus"] == {**told, "mean_of": [1.0, 1.0]}
    model.adapters.add("focus", depth=3)
    save_bundle(model, tmp_path / "other")
    with pytest.raises(SystemExit, match="not of one shape"):
        script.main(
            [
                str(tmp_path / "one"),
                str(tmp_path / "one"),
                str(tmp_path / "other"),
                "--part",
                "focus",
            ]
        )
    assert (tmp_path / "one" / "README.md").read_text() == "# A card"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other"]
