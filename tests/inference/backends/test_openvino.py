"""OpenVINO answers as torch does, in the precision that was asked for, from what is kept on disk, or says why not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_backends import KEPT, TINY_RULE, ask, reopen, smallest_unet
from tiny_questions import random_question
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends import openvino_graphs, openvino_runtime
from vega_diffusion.inference.backends.faults import BackendFault, Fault, NotFinite, Route
from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser, open_first
from vega_diffusion.inference.backends.openvino_denoiser import batches
from vega_diffusion.inference.backends.openvino_runtime import CompiledNetwork, CpuFeatures, cpu_features
from vega_diffusion.inference.backends.protocol import Denoiser, InUse, Precision, Question, joined
from vega_diffusion.inference.backends.store import INDEX
from vega_diffusion.inference.backends.torch_eager import TorchEager

pytest.importorskip("openvino")
pytest.importorskip("nncf")
Converted = tuple[Path, Any]


def relative_error(answer: torch.Tensor, expected: torch.Tensor) -> float:
    return float((answer - expected).norm() / expected.norm())


@pytest.fixture
def copied(converted: Converted, tmp_path: Path) -> Converted:
    """A home of the test's own with the same content."""
    shutil.copytree(converted[0], tmp_path / "home")
    return tmp_path / "home", converted[1]


@pytest.mark.parametrize(("rows", "height", "width"), [(2, 8, 8), (1, 8, 8), (3, 5, 7)])
def test_float32_equals_torch_at_both_depths_and_any_shape(
    converted: Converted, rows: int, height: int, width: int
) -> None:
    home, unet = converted
    denoiser, eager = reopen(home, "fp32"), TorchEager(lambda: unet)
    assert denoiser.in_use == InUse("openvino", "fp32", False, ("CPU",))
    question = ask(unet, rows, height, width)
    prediction, deep = denoiser.full(question)
    expected, expected_deep = eager.full(question)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deep, expected_deep, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(denoiser.predict(question), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(denoiser.shallow(question, expected_deep), expected, atol=1e-5, rtol=1e-4)
    assert denoiser.in_use == InUse("openvino", "fp32", True, ("CPU",))
    in_bf16 = question.mapped(lambda tensor: tensor.bfloat16())
    assert denoiser.predict(in_bf16).dtype == torch.bfloat16


def test_eight_bits_are_really_in_use_and_near_torch(quantised: Converted) -> None:
    home, unet = quantised
    denoiser = reopen(home, "int8")
    question = ask(unet)
    assert 0 < relative_error(denoiser.predict(question), TorchEager(lambda: unet).predict(question)) < 0.15
    assert denoiser.in_use == InUse("openvino", "int8", True, ("CPU",))


@pytest.mark.slow
def test_eight_bit_weights_are_nearer_and_smaller(compressed: Converted) -> None:
    home, unet = compressed
    denoiser: Any = reopen(home, "int8-weights")
    question = ask(unet)
    assert 0 < relative_error(denoiser.predict(question), TorchEager(lambda: unet).predict(question)) < 0.05
    assert denoiser.in_use == InUse("openvino", "int8-weights", True, ("CPU",))
    wide: Any = reopen(home, "fp32")
    small, large = ((each._networks._graphs.folder / "full.bin").stat().st_size for each in (denoiser, wide))
    assert small < 0.75 * large, "matrices; kernels of convolutions stay as they are"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_do_not_depend_on_their_batch_mates(quantised: Converted, precision: Precision) -> None:
    """In one shape: bit-equal. Between shapes other kernels may run: last bits, and in int8 a rounding step."""
    home, unet = quantised
    denoiser = reopen(home, precision)
    first, second, third = (ask(unet, 1, seed=seed) for seed in (1, 2, 3))
    with_second, with_third = (denoiser.predict(joined([first, mate])) for mate in (second, third))
    assert torch.equal(with_second[0], with_third[0])
    assert torch.equal(denoiser.predict(joined([second, first]))[1], with_second[0])
    assert relative_error(denoiser.predict(first)[0], with_second[0]) < (1e-5 if precision == "fp32" else 0.02)


def test_rows_of_a_guided_question_have_a_stream_each(converted: Converted) -> None:
    """Each is the same bits as alone, at both depths, whatever the number of rows."""
    home, unet = converted
    denoiser: Any = reopen(home, "fp32", num_threads=2, num_streams=2)
    pair = ask(unet)
    prediction, deep = denoiser.full(pair)
    (network,) = denoiser._networks._graphs.compiled()
    assert (network.num_streams, network.num_threads) == (2, 2)
    expected, expected_deep = TorchEager(lambda: unet).full(pair)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deep, expected_deep, atol=1e-5, rtol=1e-4)
    shallow = denoiser.shallow(pair, deep)
    for row in range(2):
        alone, deep_alone = denoiser.full(pair.rows(row, row + 1))
        assert torch.equal(prediction[row : row + 1], alone)
        assert torch.equal(deep[row : row + 1], deep_alone)
        assert torch.equal(shallow[row : row + 1], denoiser.shallow(pair.rows(row, row + 1), deep_alone))
    many = ask(unet, 5)
    torch.testing.assert_close(denoiser.predict(many), TorchEager(lambda: unet).predict(many), atol=1e-5, rtol=1e-4)


def test_streams_answer_several_threads(converted: Converted) -> None:
    home, unet = converted
    denoiser = reopen(home, "fp32", num_threads=2, num_streams=2)
    questions = [ask(unet, rows, seed=rows) for rows in (1, 2, 3, 2)]
    expected = [denoiser.predict(question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, one in zip(pool.map(denoiser.predict, questions), expected, strict=True):
                assert torch.equal(found, one)


def test_one_thread_is_one_thread(converted: Converted) -> None:
    home, unet = converted
    denoiser: Any = reopen(home, "fp32", num_threads=1)
    denoiser.predict(ask(unet))
    (network,) = denoiser._networks._graphs.compiled()
    assert network.num_threads == 1


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("rows", [*range(1, 18), 100])
def test_rows_are_evaluated_in_powers_of_two(rows: int, num_streams: int) -> None:
    sizes = batches(rows, num_streams)
    assert sum(sizes) == rows
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) <= {1, 2, 4, 8}
    assert sizes[0] * num_streams <= max(rows, num_streams), "no stream takes what others could"
    assert len(sizes) <= rows // 8 + 3 * num_streams


def test_rows_one_by_one_take_one_network_and_are_each_alone(converted: Converted) -> None:
    home, unet = converted
    denoiser: Any = reopen(home, "fp32", max_rows=1)
    question = ask(unet, 3)
    together = denoiser.predict(question)
    (network,) = denoiser._networks._graphs.compiled()
    assert network._compiled.inputs[0].shape[0] == 1
    alone = [denoiser.predict(question.rows(row, row + 1)) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_few_networks_serve_every_number_of_rows(converted: Converted) -> None:
    home, unet = converted
    denoiser: Any = reopen(home, "fp32", max_shapes=10)
    question = ask(unet, 11)
    expected, deep = TorchEager(lambda: unet).full(question)
    for rows in (11, 7, 5, 3):
        some = question.mapped(lambda tensor: tensor[:rows])  # noqa: B023
        prediction, own = denoiser.full(some)
        torch.testing.assert_close(prediction, expected[:rows], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own, deep[:rows], atol=1e-5, rtol=1e-4)
    assert len(denoiser._networks._graphs.compiled()) == 4


def test_few_shapes_stay_compiled(converted: Converted) -> None:
    home, unet = converted
    denoiser: Any = reopen(home, "fp32", max_shapes=2)
    for rows in (1, 2, 4):
        denoiser.predict(ask(unet, rows))
    assert len(denoiser._networks._graphs.compiled()) == 2
    denoiser.close()
    assert denoiser._networks._graphs.compiled() == ()


def kept_layers(denoiser: Any) -> Counter[str]:
    """Return what a network read from a blob is said to run in: what OpenVINO says of it."""
    (network,) = denoiser._networks._graphs.compiled()
    told = CompiledNetwork(network._compiled).layer_precisions
    assert network._layers == told == network.layer_precisions
    return told


def test_a_blob_is_kept_and_answers_without_compiling(copied: Converted) -> None:
    home, unet = copied
    question = ask(unet)
    expected = reopen(home, "fp32", keep_blobs=True).predict(question)
    (blob,) = home.glob("blob-unet-full-*")
    written = (blob / INDEX).stat().st_mtime_ns
    again = reopen(home, "fp32", keep_blobs=True)
    next(iter(again._networks._graphs.folder.glob("full.xml"))).unlink()  # type: ignore[attr-defined]
    assert torch.equal(again.predict(question), expected)
    assert (blob / INDEX).stat().st_mtime_ns == written
    assert set(kept_layers(again)) == {"f32"}


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_blobs_of_eight_bits_take_their_weights_from_the_network(
    quantised: Converted, compressed: Converted, precision: Precision, tmp_path: Path
) -> None:
    home, question = Path(shutil.copytree(quantised[0], tmp_path / "home")), ask(quantised[1])
    first = reopen(home, precision, keep_blobs=True)
    expected = first.predict(question)
    again = reopen(home, precision, keep_blobs=True)
    next(iter(again._networks._graphs.folder.glob("full.xml"))).unlink()  # type: ignore[attr-defined]
    assert torch.equal(again.predict(question), expected)
    assert again.in_use == first.in_use
    assert again.in_use.precision == precision
    assert bool(kept_layers(again)["i8"] + kept_layers(again)["u8"])


def test_a_foreign_blob_is_compiled_again_with_one_line(copied: Converted) -> None:
    home, unet = copied
    question = ask(unet)
    expected = reopen(home, "fp32", keep_blobs=True).predict(question)
    (blob,) = home.glob("blob-unet-full-*")
    index = json.loads((blob / INDEX).read_text())
    (blob / openvino_graphs.BLOB).write_bytes(b"made by another version")
    index["files"][openvino_graphs.BLOB] = hashlib.sha256(b"made by another version").hexdigest()
    (blob / INDEX).write_text(json.dumps(index))
    lines: list[str] = []
    assert torch.equal(reopen(home, "fp32", keep_blobs=True, say=lines.append).predict(question), expected)
    assert len(lines) == 1
    assert "from other weights or by other versions; it is made anew" in lines[0]


@pytest.mark.slow
def test_a_damaged_conversion_is_made_anew_with_one_line(compressed: Converted, tmp_path: Path) -> None:
    shutil.copytree(compressed[0], tmp_path / "home")
    home, unet = tmp_path / "home", compressed[1]
    (folder,) = (path for path in home.glob("unet-*") if "fp32" in (path / INDEX).read_text())
    content = (folder / "full.bin").read_bytes()
    (folder / "full.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BackendFault, match="no weights were given"):
        reopen(home, "fp32")
    (folder,) = (path for path in home.glob("unet-*") if "int8-weights" in (path / INDEX).read_text())
    (folder / INDEX).write_text("{")
    lines: list[str] = []
    opening = Opening(home=home, keep_blobs=False, say=lines.append)
    denoiser = open_denoiser(Route("openvino", "int8-weights"), Weights("smallest", lambda: unet), opening)
    assert [line for line in lines if "damaged" in line] == [
        f"{folder}: a kept file is damaged (index.json cannot be read); it is made anew"
    ]
    question = ask(unet)
    assert relative_error(denoiser.predict(question), TorchEager(lambda: unet).predict(question)) < 0.05


def test_other_weights_and_other_versions_are_not_what_is_kept(
    converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = converted
    opening = Opening(home=home, rule=TINY_RULE)
    with pytest.raises(
        BackendFault, match=r"nothing is kept .* allowed: a conversion kept in .*; give weights of unet"
    ):
        open_denoiser(Route("openvino", "fp32"), Weights("others", None), opening)
    with pytest.raises(BackendFault, match="nothing is kept"):
        open_denoiser(Route("openvino", "fp32"), KEPT, opening, branch=1)
    with pytest.raises(BackendFault, match="nothing is kept"):
        open_denoiser(Route("openvino", "int8"), KEPT, replace(opening, rule=replace(TINY_RULE, max_error=0.01)))
    monkeypatch.setattr(openvino_graphs, "version", lambda name: "0.0")
    with pytest.raises(BackendFault, match="nothing is kept"):
        open_denoiser(Route("openvino", "fp32"), KEPT, opening)


def test_torch_weights_are_freed_after_conversion_and_no_usage_data_is_sent(first_conversion: Any) -> None:
    assert first_conversion.is_freed
    assert first_conversion.lines == ["openvino: converting unet to fp32, once for these weights"]
    assert first_conversion.sent == []


def test_without_bf16_instructions_it_is_float32_with_one_line(converted: Converted) -> None:
    if cpu_features().bf16:
        pytest.skip("this CPU has bf16")
    home, unet = converted
    lines: list[str] = []
    denoiser = reopen(home, "bf16", say=lines.append)
    denoiser.predict(ask(unet))
    assert denoiser.in_use == InUse("openvino", "fp32", True, ("CPU",))
    assert lines == ["unet: openvino in bf16: this CPU has no bf16 instructions; going on in fp32"]
    with pytest.raises(BackendFault, match="backend: openvino in bf16 is not possible .* use fp32"):
        reopen(home, "bf16", may_fall_back=False)


def test_bf16_is_reported_as_what_openvino_really_runs(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU lacks it, OpenVINO runs float32 without a word, with AVX-512 bf16 by conversions; we say which."""
    really = cpu_features().bf16
    monkeypatch.setattr(openvino_runtime, "cpu_features", lambda: CpuFeatures(bf16=True, vnni=True))
    lines: list[str] = []
    weights, unet = Weights("smallest", lambda: converted[1]), converted[1]
    denoiser = open_denoiser(Route("openvino", "bf16"), weights, Opening(home=tmp_path, say=lines.append))
    question = ask(unet)
    error = relative_error(denoiser.predict(question), TorchEager(lambda: unet).predict(question))
    narrow = error > 4e-3  # weights that are kept in fp16 alone, for float32 on AVX2: 0.0009
    assert error < (0.02 if really else 0.05)  # 0.031 by conversions
    assert narrow or not really
    assert denoiser.in_use.precision == ("bf16" if narrow else "fp32")
    assert any("openvino runs no layer in bf16" in line for line in lines) != narrow


def test_int8_without_questions_or_nncf_is_float32_with_a_line(
    converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, unet = converted
    monkeypatch.setattr(openvino_runtime, "cpu_features", lambda: CpuFeatures(bf16=False, vnni=True))
    weights = Weights("smallest", lambda: unet)
    lines: list[str] = []
    # kept under TINY_RULE alone: the default rule has to be made, and cannot
    opening = Opening(home=home, say=lines.append, keep_blobs=False)
    assert open_denoiser(Route("openvino", "int8"), weights, opening).in_use.precision == "fp32"
    assert lines == [
        "unet: openvino in int8: there are no calibration questions; going on in bf16",
        "unet: openvino in bf16: this CPU has no bf16 instructions; going on in fp32",
    ]
    lines.clear()
    monkeypatch.setattr(openvino_graphs, "_nncf_version", lambda: "none")
    open_denoiser(Route("openvino", "int8"), weights, opening, questions=lambda: [ask(unet, 1)])
    assert lines[0] == "unet: openvino in int8: nncf is not installed; going on in bf16"


def test_without_the_package_the_next_route_is_taken_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda name: None)
    unet, lines = smallest_unet(), list[str]()
    weights, opening = Weights("smallest", lambda: unet), Opening(say=lines.append)
    routes = [Route("openvino", "int8"), Route("torch", "fp32")]
    assert open_first(routes, weights, opening).in_use == InUse("torch", "fp32", False, ("cpu",))
    assert lines == ["openvino in int8: the backend's packages are not installed; going on with torch in fp32"]
    with pytest.raises(BackendFault, match=r"pip install 'vega-diffusion\[openvino\]' or use backend torch") as caught:
        open_first(routes[:1], weights, opening)
    assert caught.value.fault == Fault.NOT_INSTALLED


def test_values_that_are_not_finite_lead_to_wider_numbers_with_one_line_or_to_one_error(
    quantised: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, unet = quantised
    lines: list[str] = []
    denoiser: Any = reopen(home, "int8", say=lines.append)
    lines.clear()
    run = openvino_graphs.Graphs.run

    def lost(found: list[list[Any]]) -> list[list[Any]]:
        return [[output * float("nan") for output in outputs] for outputs in found]

    def overflow(self: Any, graph: str, *questions: Any) -> Any:
        found = run(self, graph, *questions)
        return lost(found) if self.settings.precision == "int8" else found

    monkeypatch.setattr(openvino_graphs.Graphs, "run", overflow)
    monkeypatch.setattr(openvino_runtime, "cpu_features", lambda: CpuFeatures(bf16=False, vnni=False))
    question = ask(unet)
    torch.testing.assert_close(
        denoiser.predict(question), TorchEager(lambda: unet).predict(question), atol=1e-5, rtol=1e-4
    )
    assert denoiser.in_use.precision == "fp32"
    assert lines[-1] == "unet: values that are not finite in openvino in int8; going on in fp32"
    monkeypatch.setattr(openvino_graphs.Graphs, "run", lambda *given: lost(run(*given)))
    with pytest.raises(NotFinite, match="not finite in openvino in fp32; allowed: finite weights; fetch them again"):
        denoiser.predict(question)
    # what comes in broken goes out broken: whoever made it says so
    assert denoiser.predict(replace(question, x_t=question.x_t * float("nan"))).isnan().all()


def test_precisions_that_a_backend_does_not_have_are_errors() -> None:
    unet = smallest_unet()
    weights = Weights("smallest", lambda: unet)
    with pytest.raises(InvalidValue, match="precision: 'int8' is not allowed; allowed: fp32 for this unet"):
        open_denoiser(Route("torch", "int8"), weights)
    with pytest.raises(InvalidValue, match="precision: 'fp16' is not allowed; allowed: fp32, bf16, int8, int8-weights"):
        open_denoiser(Route("openvino", "fp16"), weights)


@pytest.mark.slow
@pytest.mark.parametrize("branch", [0, 1])
def test_guidance_as_an_input_and_other_branches_convert(tmp_path: Path, branch: int) -> None:
    unet = smallest_unet(time_cond_proj_dim=12, mid_block_type="UNetMidBlock2DCrossAttn")
    opening = Opening(home=tmp_path)
    denoiser = open_denoiser(Route("openvino", "fp32"), Weights("more", lambda: unet), opening, branch)
    question, eager = ask(unet), TorchEager(lambda: unet, branch)
    expected, deep = eager.full(question)
    torch.testing.assert_close(denoiser.full(question)[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(denoiser.shallow(question, deep), expected, atol=1e-5, rtol=1e-4)


def wide_from_700(quantised: Converted, precision: Precision = "int8") -> Denoiser:
    home, unet = quantised
    opening = Opening(home=home, rule=TINY_RULE, keep_blobs=False)
    return open_denoiser(Route("openvino", precision), Weights("smallest", lambda: unet), opening, wide_from=700)


def at(question: Question, *timesteps: int) -> Question:
    return Question(**question.named() | {"timesteps": torch.tensor(timesteps)})


def chosen(question: Question, rows: list[int]) -> Question:
    return question.mapped(lambda tensor: tensor[rows])


@pytest.mark.parametrize(
    ("timesteps", "wide_rows"), [((900, 100, 700), [0, 2]), ((0, 699, 1), []), ((700, 999, 1000), [0, 1, 2])]
)
def test_each_row_comes_from_the_networks_of_its_timestep_at_both_depths(
    quantised: Converted, timesteps: tuple[int, ...], wide_rows: list[int]
) -> None:
    question = at(random_question(quantised[1], 3, length=77, seed=9), *timesteps)
    both, narrow, wide = wide_from_700(quantised), reopen(quantised[0], "int8"), reopen(quantised[0], "fp32")
    if cpu_features().bf16:
        wide = wide_from_700(quantised, "bf16")
    prediction, deep = both.full(question)
    again = both.shallow(question, deep)
    rest = [row for row in range(3) if row not in wide_rows]
    for rows, alone, other in ((wide_rows, wide, narrow), (rest, narrow, wide)):
        if rows:
            asked = chosen(question, rows)
            expected, expected_deep = alone.full(asked)
            assert torch.equal(prediction[rows], expected)
            assert torch.equal(deep[rows], expected_deep)
            assert torch.equal(again[rows], alone.shallow(asked, deep[rows]))
            assert not torch.equal(other.predict(asked), expected), "else nothing is told apart"
    assert torch.equal(both.predict(question), prediction)


def test_what_is_in_use_is_int8_and_really_so(quantised: Converted) -> None:
    both = wide_from_700(quantised)
    both.predict(at(random_question(quantised[1], 1, length=77), 5))
    assert (both.in_use.backend, both.in_use.precision, both.in_use.is_compiled) == ("openvino", "int8", True)
    both.close()
    assert not both.in_use.is_compiled
