"""The folder that mt3 site writes, and where it refuses to; the packages of npm with their digests."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from fakes import CONFIG, names

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.cli import site as cli
from mt3_common.config import PRESETS
from mt3_common.formats.find_audio import MEDIA_SUFFIXES, name_of_recording
from mt3_common.transcription.activations import CLEAR_ONSET
from mt3_common.web import runtime, site

PAGE = Path(runtime.__file__).parent / "page"
CHECKPOINT = NamedCheckpoint(Path("small"), "small", notice="a notice")
RUNTIME = {
    runtime.SCRIPT: b"export const env = {};\n//# sourceMappingURL=x.map\n",
    runtime.WASM: b"\0asm",
    runtime.MPG123: b"// decoder",
}


def test_the_page_names_its_files_as_the_command_line_does():
    [pattern] = re.findall(r"ENDINGS =\s+/(.*)/i;", (PAGE / "main.js").read_text())
    names = [f"Op. 1{suffix}" for suffix in MEDIA_SUFFIXES] + ["a.FLAC", "Etude No.1", "Mr. Jones", "a.txt", "wav", ""]
    for name in names:
        assert re.sub(pattern, "", name, flags=re.IGNORECASE) == name_of_recording(name), name


def package(path: Path, **files: bytes) -> str:
    """Write a package of npm and return its digest as npm shows it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_a_site_is_written_and_written_again(tmp_path):
    folder = tmp_path / "new" / "site"
    sizes = site.write_site(folder, CONFIG, CHECKPOINT, b"model", RUNTIME)
    assert sorted(sizes) == names(folder)
    assert gzip.decompress((folder / "local" / "model.onnx.gz").read_bytes()) == b"model"
    assert gzip.decompress((folder / "local" / "onnxruntime.wasm.gz").read_bytes()) == b"\0asm"
    assert b"sourceMapping" not in (folder / "local" / "onnxruntime.js").read_bytes()
    site.write_site(folder, CONFIG, CHECKPOINT, b"other", RUNTIME)
    assert gzip.decompress((folder / "local" / "model.onnx.gz").read_bytes()) == b"other"
    facts = json.loads((folder / "site.json").read_text())
    assert facts["about"]["checkpoint"] == "small"
    assert facts["about"]["notice"] == "a notice"
    assert facts["sizes"]["frames"] == CONFIG.input_frames
    assert "Microsoft" in (folder / "LICENSES.txt").read_text()
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in (folder / "LGPL-2.1.txt").read_text()
    # the licences are not fetched by visitors, nor is what only some recordings need
    rare = {name: size for name, size in sizes.items() if "resample-" in name or name.endswith(("mpg123.js", ".txt"))}
    assert len(rare) == 16
    assert site.visit_size(sizes) == sum(sizes.values()) - sum(rare.values()) - sizes["_headers"]


def test_the_page_takes_scripts_of_its_own_folder_only(tmp_path):
    files = site.site_files(CONFIG, CHECKPOINT, b"", RUNTIME)
    page = files["index.html"].decode()
    assert f'<meta http-equiv="Content-Security-Policy" content="{site.POLICY}">' in page
    assert "wasm" not in site.POLICY
    assert "unsafe-inline" not in site.POLICY
    # relative, so that the folder may lie anywhere
    assert re.findall(r'(?:href|src)="(?!icon.svg|style.css|main.js)[^"]*"', page) == []
    for name, content in files.items():
        if name.endswith(".js") and name not in ("local/onnxruntime.js", "local/mpg123.js"):
            assert not re.search(rb"https?://", content), name
            for imported in re.findall(rb'from "(\./[^"]+)"', content):
                assert os.path.normpath(Path(name).parent / imported.decode()) in files, (name, imported)


def test_folders_with_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "diary.txt").write_text("dear diary")
    assert cli.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} holds other files: name a new or an empty folder" in capsys.readouterr().err
    assert cli.main([str(tmp_path / "diary.txt")]) == 2
    assert "diary.txt is a file, not a folder" in capsys.readouterr().err
    assert names(tmp_path) == ["diary.txt"]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Packages of npm with RUNTIME's files, in a folder."""
    folder = tmp_path / "archives"
    folder.mkdir()
    packages = []
    for known in runtime.PACKAGES:
        content = {name: RUNTIME[name] for name in known.files}
        packages.append(known._replace(sha512=package(folder / known.archive, **content)))
    monkeypatch.setattr(runtime, "PACKAGES", tuple(packages))
    return [folder / known.archive for known in packages]


def test_packages_are_taken_by_their_digest(tmp_path, archives, capsys):
    odd = tmp_path / "runtime.tgz"
    digest = package(odd, other=b"")
    assert cli.main([str(tmp_path / "site"), "--runtime", str(odd)]) == 2
    message = f"{odd} is not the package onnxruntime-web 1.30.0 or mpg123-decoder 1.0.3: its SHA-512 is {digest}"
    assert message in capsys.readouterr().err
    # in any order
    assert runtime.runtime_files(archives[::-1]) == RUNTIME
    with pytest.raises(runtime.RuntimeMissing, match="cannot be read: No such file"):
        runtime.runtime_files([tmp_path / "none.tgz"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "npm is not installed"),
        ("echo 'npm error no network' >&2; exit 1", "npm cannot fetch .*npm error no network"),
    ],
)
def test_without_npm_or_a_network_the_way_out_is_told(tmp_path, monkeypatch, script, message):
    if script is not None:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if script is None else f"{tmp_path}:/bin")
    with pytest.raises(runtime.RuntimeMissing, match=f"{message}.* with --runtime"):
        runtime.runtime_files()


def test_npm_is_asked_for_what_is_not_named(tmp_path, monkeypatch, archives):
    (tmp_path / "npm").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked; cp {archives[1]} "$4"\n')
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert runtime.runtime_files(archives[:1]) == RUNTIME
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("pack mpg123-decoder@1.0.3 --pack-destination ")
    # what npm fetches has the digest, too
    with pytest.raises(runtime.RuntimeMissing, match="npm fetched another onnxruntime-web"):
        runtime.runtime_files()


def test_front_ends_that_the_page_cannot_compute_are_refused():
    odd = dataclasses.replace(CONFIG.spectrogram, fft_size=1500)
    with pytest.raises(ValueError, match="powers of 2, not windows of 1500 samples"):
        site.front_end(odd)


def test_velocities_that_a_model_says_are_left_as_they_are():
    checkpoint = NamedCheckpoint(Path("small"), "small")
    velocities = {name: site.facts(PRESETS[name], checkpoint, [], [])["velocity"] for name in ("mt3", "ismir2021")}
    assert velocities == {"mt3": 100, "ismir2021": None}


def test_what_onsets_and_offsets_are_corrected_by_is_told():
    checkpoint = NamedCheckpoint(Path("small"), "small")
    hears = dataclasses.replace(CONFIG.network, pre_encoder_layers=2, pre_encoder_dim=32, context_frames=8)
    facts = site.facts(dataclasses.replace(CONFIG, network=hears), checkpoint, [], [])
    assert facts["sizes"]["contextFrames"] == 8
    assert facts["activations"]["clearOnset"] == CLEAR_ONSET
    facts = site.facts(CONFIG, checkpoint, [], [])
    assert (facts["sizes"]["contextFrames"], facts["activations"]) == (0, None)
