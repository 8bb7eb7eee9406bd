from __future__ import annotations

import io
import re

import msgspec
import pytest
from rich.console import Console, RenderableType

from unit.evaluation.made import benchmark, comparison, evaluation, inspection, layers, quantization, size, transforms
from zeropoint.evaluation.results import Text
from zeropoint.report.terminal import benched, compared, evaluated, inspected, quantized, size_table


def shown(renderable: RenderableType, width: int = 80, *, colour: bool = False) -> str:
    """What a console of that width shows; plain, as in a pipe, unless colour is asked for."""
    stream = io.StringIO()
    settings = {"force_terminal": True, "color_system": "standard"} if colour else {}
    Console(file=stream, width=width, highlight=False, markup=False, emoji=False, **settings).print(renderable)  # type: ignore[arg-type]
    return stream.getvalue()


def line(text: str, start: str) -> list[str]:
    """The cells of the line that begins with `start`."""
    found = [row for row in text.splitlines() if row.strip().startswith(start)]
    assert len(found) == 1, (start, text)
    return re.split(r"\s{2,}", found[0].strip())


def test_an_evaluation_shows_both_models_ratio_and_interval() -> None:
    text = shown(evaluated(evaluation()))
    assert text.startswith("INCONCLUSIVE  The perplexity is 1.0123 times")
    assert line(text, "perplexity") == ["perplexity", "15.493", "15.684", "x1.0123", "x1.0061 to x1.0185"]
    assert line(text, "KL") == ["KL, nats per token", "0.0123", "0.0110 to 0.0137"]
    assert line(text, "99th") == ["99th percentile", "0.0921"]
    assert line(text, "top-1") == ["top-1 agreement", "93.1 %", "92.5 % to 93.7 %"]
    assert line(text, "size") == ["size", "269.1 MB", "113.1 MB", "x0.420"]
    assert line(text, "bits per weight, linears") == ["bits per weight, linears", "16.000", "4.250"]
    assert line(text, "bits per weight, model") == ["bits per weight, model", "16.001", "6.727"]
    assert "30,660 tokens, 60 windows of 512, of held-out.txt; 1 min 01 s" in text


def test_a_scheme_is_shown_with_that_of_its_input() -> None:
    rounded = tuple(msgspec.structs.replace(row, input_scheme="int8 token") for row in layers(2))
    text = shown(quantized(msgspec.structs.replace(quantization(2), layers=rounded)), 120)
    assert "int4 g64 sym x int8 token" in line(text, "q_proj x2")


def test_what_a_transform_did_to_the_head_is_said_beside_the_formats_note() -> None:
    notes = {"format_note": "only zeropoint can run this", "transform_note": "the head takes 56,623,104 bytes more"}
    text = shown(quantized(msgspec.structs.replace(quantization(2), **notes)), 100)
    assert all(note in text for note in notes.values())


def test_outlier_columns_are_counted_and_layers_with_many_are_named() -> None:
    rows = tuple(
        msgspec.structs.replace(row, outlier_columns=154 if row.name == "model.layers.1.mlp.down_proj" else index)
        for index, row in enumerate(layers(3))
    )
    note = "outlier columns stay float, which only zeropoint can run"
    text = shown(quantized(msgspec.structs.replace(quantization(3), layers=rows, format_note=note)), 100)
    assert line(text, "q_proj x3")[3] == "0 4 8"
    assert line(text, "down_proj x3")[3] == "3 11 154"
    assert "more than 10 % outlier columns, in 1 of 12 layers:" in text
    assert line(text, "model.layers.1.mlp.down_proj") == ["model.layers.1.mlp.down_proj: 154 of 1,536"]
    assert note in text
    assert line(shown(quantized(quantization(3), all_rows=True), 120), "layer")[3:] == [
        "rounding",
        "SQNR dB",
        "output dB",
    ]
    every = shown(quantized(msgspec.structs.replace(quantization(3), layers=rows), all_rows=True), 120)
    assert line(every, "model.layers.2.self_attn.q_proj")[4] == "8"
    assert "stay float" not in every


def test_an_inspection_counts_outlier_columns() -> None:
    found = inspection()
    rows = tuple(
        msgspec.structs.replace(row, outlier_columns=5) if row.role == "linear" else row for row in found.tensors
    )
    text = shown(inspected(msgspec.structs.replace(found, tensors=rows)), 120)
    assert line(text, "layers")[:5] == ["layers", "shape", "stored as", "bytes", "outliers"]
    assert all(re.split(r"\s{2,}", row)[4] == "5" for row in text.splitlines() if "_proj x" in row)
    assert "outliers" not in shown(inspected(found), 120)


def test_one_window_shows_that_there_is_no_interval() -> None:
    alone = evaluation(ratio_interval95=None, kl_interval95=None, top1_interval95=None)
    assert line(shown(evaluated(alone)), "perplexity")[-1] == "-"


def test_what_a_reader_should_know_about_the_text_is_shown() -> None:
    text = Text(name="a.txt", sha256="0", windows=2, length=8, note="3 documents were shorter than a window")
    assert "3 documents were shorter than a window" in shown(evaluated(evaluation(text=text)))


@pytest.mark.parametrize("verdict", ["EQUIVALENT", "DEGRADED", "INCONCLUSIVE"])
def test_the_verdict_is_a_word_and_colour_only_repeats_it(verdict: str) -> None:
    made = evaluated(evaluation(verdict=verdict))
    assert shown(made).startswith(verdict)
    coloured = shown(made, colour=True)
    assert coloured.startswith("\x1b[1;3")
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown(made)


def test_layers_are_told_by_kind_with_lowest_median_and_highest() -> None:
    text = shown(quantized(quantization()))
    assert line(text, "q_proj") == ["q_proj x30", "int4 g64 sym", "gptq", "18.0 19.5 21.0", "23.0 25.2 30.0", "21"]
    assert line(text, "o_proj") == ["o_proj x30", "int4 g64 sym", "gptq", "18.0 19.5 21.0", "10.5 25.2 30.0", "29 *"]
    assert len([row for row in text.splitlines() if "_proj x" in row]) == 4
    assert "recipe w4a16, calibrated on 128 x 512 tokens of calibration.txt; 1 min 43 s" in " ".join(text.split())
    assert "peak memory 1.1 GB" in " ".join(text.split())


def test_all_rows_show_every_layer_and_mark_the_worst() -> None:
    text = shown(quantized(quantization(), all_rows=True), 120)
    assert sum("model.layers." in row for row in text.splitlines()) == 120
    assert line(text, "model.layers.29.self_attn.o_proj")[0] == "model.layers.29.self_attn.o_proj *"
    assert text.count(" *  ") == 1


def test_layers_of_one_kind_with_different_schemes_have_rows_of_their_own() -> None:
    rows = layers(4)
    mixed = (msgspec.structs.replace(rows[0], scheme="int8 g64 sym"), *rows[1:])
    text = shown(quantized(msgspec.structs.replace(quantization(), layers=mixed)))
    assert [row.split()[1] for row in text.splitlines() if row.startswith("q_proj")] == ["x1", "x3"]


def test_what_the_runtime_is_to_round_is_told_where_the_recipe_asks_for_it() -> None:
    made = quantization()
    assert "to be run with" not in shown(quantized(made))
    text = shown(quantized(msgspec.structs.replace(made, recipe=made.recipe | {"kv_cache": "int8"})), 120)
    assert "to be run with a KV cache of int8, as config.json says" in " ".join(text.split())


def test_a_verdict_says_what_the_model_was_run_with() -> None:
    text = " ".join(shown(evaluated(evaluation(kv_cache="int8", embeddings="int8"))).split())
    assert "KV cache int8, embeddings int8" in text
    assert "embeddings" not in shown(evaluated(evaluation()))


def test_layers_without_statistics_show_no_output_error() -> None:
    rows = tuple(msgspec.structs.replace(row, output_error=None) for row in layers(3))
    text = shown(quantized(msgspec.structs.replace(quantization(), layers=rows, calibration=None)))
    assert line(text, "o_proj")[4] == "-"
    assert "no calibration needed" in text


def test_fallbacks_are_named_and_counted() -> None:
    assert "fallback" not in shown(quantized(quantization()))
    text = shown(quantized(quantization(fallbacks=3)))
    assert "fallbacks in 3 of 120 layers:" in text
    assert "  model.layers.0.self_attn.q_proj: rtn: no calibration token reached it" in text
    many = shown(quantized(quantization(fallbacks=25)))
    assert many.count("no calibration token reached it") == 10
    assert "and 15 more; --json names them all" in many


def test_inputs_that_stay_dynamic_are_rows_of_their_own_named_and_counted() -> None:
    rows = [msgspec.structs.replace(row, input_scheme="int8 static asym") for row in layers(4)]
    why = "input stays dynamic: static error 0.083 is above the limit 0.05; with a scale per token 0.0006"
    rows[3] = msgspec.structs.replace(rows[3], input_scheme="int8 token", input_fallback=why)
    text = shown(quantized(msgspec.structs.replace(quantization(4), layers=tuple(rows))), 140)
    assert "dynamic instead of static in 1 of 16 layers:" in text
    assert f"  {rows[3].name}: {why}" in text
    assert "fallbacks" not in text
    assert line(text, "down_proj x1")[1] == "int4 g64 sym x int8 token"
    assert line(text, "down_proj x3")[1] == "int4 g64 sym x int8 static asym"


def test_corrected_biases_are_counted() -> None:
    made = quantization(2)
    assert "biases corrected" not in shown(quantized(made))
    asked = msgspec.structs.replace(made, recipe=made.recipe | {"bias_correction": True})
    assert "biases corrected in 0 of 8 layers; the others have none" in shown(quantized(asked))
    rows = tuple(msgspec.structs.replace(row, bias_shift=0.01) for row in made.layers)
    text = shown(quantized(msgspec.structs.replace(asked, layers=rows)))
    assert "biases corrected in 8 of 8 layers\n" in text


def test_transforms_show_the_strengths_of_each_kind_of_input_and_what_they_did() -> None:
    assert "smoothquant" not in shown(quantized(quantization()))
    text = shown(quantized(msgspec.structs.replace(quantization(), transforms=transforms())))
    assert line(text, "block outputs") == ["block outputs", "smoothquant", "x0.2 x0.25 x0.5"]
    assert line(text, "q_proj k_proj") == ["q_proj k_proj x30", "smoothquant", "0.5 0.8 0.9"]
    assert re.search(r"^o_proj x30 +smoothquant +0 0\.7 0\.7 +3 *$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_stages_that_could_not_be_transformed_are_named() -> None:
    rows = transforms(1, fallback="self_attn.v_proj feeds mlp.x too")
    text = shown(quantized(msgspec.structs.replace(quantization(), transforms=rows)))
    assert "not transformed, in 1 places:" in text
    assert "model.layers.0, self_attn.o_proj: self_attn.v_proj feeds mlp.x too" in text


def test_fallbacks_of_an_evaluated_model_are_named_too() -> None:
    text = shown(evaluated(evaluation(fallbacks=tuple(f"layer {i}: rtn" for i in range(12)))))
    assert "layer 9: rtn" in text
    assert "and 2 more; --json names them all" in text


def test_copied_tensors_that_nothing_uses_are_named() -> None:
    assert "copied as they are" not in shown(quantized(quantization()))
    assert "being no part of the text model: vision.patch" in " ".join(
        shown(quantized(quantization(skipped=("vision.patch",)))).split()
    )
    many = (*(f"model.vision.layers.{i}" for i in range(20)), "model.projector.weight")
    assert "text model: 20 of model.vision, 1 of model.projector" in " ".join(
        shown(quantized(quantization(skipped=many))).split()
    )


def test_the_size_names_every_part_and_the_total() -> None:
    text = shown(size_table(size(), source_bytes=size(quantized=False).total_bytes))
    assert line(text, "codes") == ["codes", "53.1 MB", "46.9 %"]
    assert line(text, "scales") == ["scales", "3.3 MB", "2.9 %"]
    assert line(text, "quantized linears") == ["quantized linears", "56.4 MB", "49.9 %", "4.250"]
    assert line(text, "embedding") == ["embedding", "56.6 MB", "50.1 %"]
    assert line(text, "total") == ["total", "113.1 MB", "6.727"]
    assert line(text, "before") == ["before", "269.1 MB", "x0.420"]
    assert "zero points" not in text  # there are none


def test_an_inspection_shows_what_was_measured() -> None:
    text = shown(inspected(inspection()))
    assert line(text, "q_proj") == ["q_proj x30", "576 x 1536", "int4 g64 sym", "14.1 MB", "8.0 22.5 37.0", "19.5"]
    assert "SmolLM2-w4, a llama model, against SmolLM2-135M" in text
    assert "embed_tokens" not in text


def test_headers_alone_have_no_columns_of_errors() -> None:
    text = shown(inspected(inspection(measured=False, compared=False)))
    assert line(text, "q_proj") == ["q_proj x30", "576 x 1536", "int4 g64 sym", "14.1 MB"]
    assert "SQNR" not in text
    assert "outlier" not in text


def test_an_embedding_of_integers_is_in_the_overview() -> None:
    made = inspection(measured=False, compared=False)
    assert "embed_tokens" not in shown(inspected(made))
    table = msgspec.structs.replace(made.tensors[0], stored="int8 channel sym", size_bytes=28_409_856)
    text = shown(inspected(msgspec.structs.replace(made, tensors=(table, *made.tensors[1:]))))
    assert line(text, "embed_tokens") == ["embed_tokens x1", "49152 x 576", "int8 channel sym", "28.4 MB"]


def test_all_rows_of_an_inspection_show_every_tensor() -> None:
    text = shown(inspected(inspection(), all_rows=True), 120)
    assert line(text, "model.embed_tokens.weight") == [
        "model.embed_tokens.weight",
        "49152 x 576",
        "BF16",
        "56.6 MB",
        "-",
        "-",
    ]
    found = line(text, "model.layers.29.mlp.down_proj")
    assert found[1:] == ["576 x 1536", "int4 g64 sym", "470.0 kB", "37.0", "19.5", "0.98765"]
    assert sum("_proj" in row for row in text.splitlines()) == 120


def test_speeds_stand_side_by_side_with_their_ratio_and_where_the_runs_lay() -> None:
    rows = shown(benched(benchmark())).splitlines()
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert cells[0] == ["SmolLM2-w4", "SmolLM2-135M", "ratio"]
    assert cells[3] == ["decode, tokens per s", "271.5", "135.8", "x2"]
    assert cells[4] == ["260.0 to 280.4", "130.0 to 140.2", "x1.95 to x2.04"]
    assert cells[5] == ["of the bandwidth", "80.5 %", "80.5 %"]
    assert cells[7] == ["embeddings", "int8", "stored"]
    assert cells[8] == ["KV cache", "int8", "float16"]
    assert cells[11] == ["KV cache per token", "12.2 kB", "23.0 kB", "x0.531"]
    assert cells[12] == ["peak memory", "150.0 MB", "300.0 MB", "x0.5"]
    assert cells[14] == ["start to first token", "0.50 s", "1.00 s", "x0.5"]
    text = " ".join(" ".join(rows).split())
    assert "prompt of 512 tokens; 128 tokens after 32; median, lowest and highest of 5" in text
    assert "bandwidth 29.1 GB/s (28.5 GB/s to 29.4 GB/s); 1 min 01 s" in text
    assert "2 threads, amx, activations int8" in text


def test_one_model_alone_has_no_ratio() -> None:
    text = shown(benched(benchmark(against=False)))
    assert "ratio" not in text
    assert line(text, "decode") == ["decode, tokens per s", "271.5"]
    assert line(text, "peak memory") == ["peak memory", "150.0 MB"]


def test_recipes_stand_below_the_float_model_with_their_intervals() -> None:
    text = shown(compared(comparison()))
    rows = [re.split(r"\s{2,}", row.strip()) for row in text.splitlines()]
    assert rows[2] == ["SmolLM2-135M", "-", "15.493", "-", "269.1 MB", "150.0 MB", "5,501.2"]
    assert rows[3] == ["16.000", "271.5"]
    assert rows[4] == ["w4a16", "0.1590", "x1.146", "80.7 %", "113.1 MB", "150.0 MB", "5,501.2"]
    assert rows[5] == ["3 min 19 s", "0.1424-0.1751", "1.131-1.161", "80.2-81.2", "4.250", "271.5"]
    assert rows[6][0] == "w8a8_static*"
    assert rows[7][0] == "8.2 s"
    assert rows[8] == ["wide", "failed"]
    said = " ".join(text.split())
    assert "wide failed: 64 columns do not split into groups of 40" in said
    assert "* made earlier and used again" in said
    assert "16,352 tokens, 32 windows of 512, of held-out.txt; native, avx2" in said
    assert "32 of 178 windows" in said
    assert "tokens per s, median of 5 in turns" in said


def test_a_comparison_without_speeds_says_why() -> None:
    text = shown(compared(comparison(speeds=False)))
    assert line(text, "w4a16") == ["w4a16", "0.1590", "x1.146", "80.7 %", "113.1 MB", "-", "-"]
    assert "median" not in text
    failed = shown(compared(comparison(speeds=False, speed_error="a process was ended by SIGKILL")))
    assert "speeds could not be measured: a process was ended by SIGKILL" in failed


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("all_rows", [False, True])
def test_tables_fit_the_terminal_and_are_plain_in_a_pipe(width: int, all_rows: bool) -> None:
    for made in (
        evaluated(evaluation(perplexity=31234.5, perplexity_ratio=2016.1, ratio_interval95=(1999.9, 2033.3))),
        quantized(quantization(fallbacks=2), all_rows=all_rows),
        inspected(inspection(), all_rows=all_rows),
        benched(benchmark()),
        compared(comparison()),
        compared(comparison(speeds=False)),
    ):
        text = shown(made, width)
        assert max(map(len, text.splitlines())) <= width
        assert text.isascii()
        assert "\x1b" not in text


def test_by_kind_no_row_is_broken_at_80_columns() -> None:
    for made in (quantized(quantization()), inspected(inspection())):
        assert sum("_proj" in row for row in shown(made).splitlines()) == 4


def test_names_cannot_bring_markup_or_control_characters() -> None:
    hostile = "model.layers.0.[bold red]q\x1b[31m_proj\x07\n[/]"
    rows = (msgspec.structs.replace(layers(1)[0], name=hostile, kind=hostile, fallback=hostile),)
    tensor = msgspec.structs.replace(inspection().tensors[1], name=hostile, kind=hostile, stored=hostile)
    result = msgspec.structs.replace(quantization(), layers=rows, model=hostile, skipped=(hostile,))
    for made in (
        quantized(result),
        quantized(result, all_rows=True),
        inspected(msgspec.structs.replace(inspection(), tensors=(tensor,), path=hostile)),
        inspected(msgspec.structs.replace(inspection(), tensors=(tensor,)), all_rows=True),
        evaluated(evaluation(explanation=hostile, fallbacks=(hostile,))),
    ):
        text = shown(made, 300)
        assert "[bold red]q\ufffd[31m_proj\ufffd\ufffd[/]" in text
        assert "\x1b" not in text
        assert "\x07" not in text


def test_nothing_quantized_is_a_table_without_rows() -> None:
    text = shown(quantized(msgspec.structs.replace(quantization(), layers=(), calibration=None)))
    assert "SQNR dB" in text
    assert "_proj" not in text


@pytest.mark.parametrize(
    ("elapsed_s", "expected"),
    [(8.26, "8.3 s"), (59.96, "1 min 00 s"), (125.0, "2 min 05 s"), (3780.0, "1 h 03 min")],
)
def test_durations_have_units(elapsed_s: float, expected: str) -> None:
    assert expected in shown(evaluated(evaluation(elapsed_s=elapsed_s)))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (7 * 10**15, "7,000.0 TB")],
)
def test_sizes_have_units(count: int, expected: str) -> None:
    text = shown(size_table(msgspec.structs.replace(size(), total_bytes=count)))
    assert line(text, "total")[1] == expected


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.0, "0.0000"), (0.0034, "0.0034"), (3.2e-7, "3.2e-07"), (10.25, "10.2500")]
)
def test_small_divergences_keep_their_digits(kl: float, expected: str) -> None:
    assert line(shown(evaluated(evaluation(kl_mean=kl))), "KL")[1] == expected
