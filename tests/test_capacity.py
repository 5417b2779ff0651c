"""The model of throughput: its numbers by hand, its bounds, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest

from everyframe import DenseEncoder, ReuseEncoder
from everyframe.backbone.presets import skeleton
from everyframe.scale.capacity import (
    STAGES,
    CapacityError,
    Machine,
    Prediction,
    Rate,
    Rates,
    Workload,
    cores_per_gpu,
    predict,
    together,
)


def rate(value: float, unit: str = "units", source: str = "measured: by hand") -> Rate:
    return Rate(value=value, unit=unit, source=source)


RATES = Rates(
    probe=rate(10),
    decode=((100_000, rate(1000)), (1_000_000, rate(100))),
    prepare=((100_000, rate(500)), (1_000_000, rate(250))),
    i_macs=rate(50e9),
    p_macs=rate(25e9),
    gather=rate(50e6),
    write={"npz": rate(10e6), "library": rate(2e6)},
    efficiency=rate(1.0),
)
WORK = Workload(
    hours=1000, width=1000, height=1000, source_fps=25, fps=2, interleave=4, i_macs=5e9, p_macs=1e9, dim=500
)
SMALL = Machine(name="small", cores=8, euros_per_hour=0.5)
GPU = Machine(name="gpu", cores=16, euros_per_hour=2.0, gpus=1, gpu_tflops=100, gpu_achieved=0.4)


def by_name(prediction: Prediction) -> dict[str, Any]:
    return {stage.name: stage for stage in prediction.stages}


def test_prediction_by_hand() -> None:
    found = predict(WORK, SMALL, RATES, machines=2)
    decode, resize = 3600 * 25 / 100, 7200 / 250
    i_frames, p_frames = 7200 / 5 * 5e9 / 50e9, 7200 * 4 / 5 * 1e9 / 25e9
    cores = 6 / 10 + decode + resize + i_frames + p_frames
    assert found.hours == pytest.approx(1000 * cores / 3600 / 16)
    assert found.by_resource["driver"] == pytest.approx(1000 * 7200 * 500 * (1 / 50e6 + 1 / 10e6) / 3600)
    assert found.bottleneck == "decode"
    assert found.euros == pytest.approx(found.hours * 2 * 0.5)
    assert found.times_realtime == pytest.approx(1000 / found.hours)
    assert found.frames_per_second == pytest.approx(2 * found.times_realtime)
    assert found.euros_per_thousand_hours == pytest.approx(found.euros)
    stages = by_name(found)
    assert stages["decode"].seconds == pytest.approx(decode)
    assert stages["P-frames"].seconds == pytest.approx(p_frames)
    assert set(stages) == set(STAGES) - {"read"}
    assert found.assumptions == ()


def test_a_gpu_encodes_and_the_cores_decode() -> None:
    found = predict(WORK, GPU, RATES, machines=1)
    gpu = 7200 / 5 * (5e9 + 4 * 1e9) / (100e12 * 0.4 / 2)
    assert found.by_resource["gpus"] == pytest.approx(1000 * gpu / 3600)
    assert found.bottleneck == "decode" and found.hours == found.by_resource["cores"]
    cores = 6 / 10 + 900 + 28.8
    assert cores_per_gpu(WORK, GPU, RATES) == pytest.approx(cores / gpu)
    assert found.assumptions == ("assumed: 40% of 100 TFLOP/s",)
    with pytest.raises(ValueError, match="small has no GPU"):
        cores_per_gpu(WORK, SMALL, RATES)


def test_a_unit_of_machines_that_keeps_its_gpu_busy() -> None:
    heavy = dataclasses.replace(WORK, i_macs=5e11, p_macs=5e10)
    alone = predict(heavy, GPU, RATES, machines=4)
    beside = max(math.ceil((cores_per_gpu(heavy, GPU, RATES) - GPU.cores) / SMALL.cores), 1)
    unit = together("unit", [(GPU, 1), (SMALL, beside)])
    found = predict(heavy, unit, RATES, machines=4)
    assert found.bottleneck == "I-frames"
    assert found.hours == pytest.approx(alone.by_resource["gpus"]) and alone.bottleneck == "decode"
    assert unit.euros_per_hour == pytest.approx(2 + 0.5 * beside) and unit.cores == 16 + 8 * beside
    faster = together("x", [(dataclasses.replace(SMALL, core_speed=0.5), 2), (SMALL, 1)])
    assert faster.cores == 16 and faster.network_gbits is None
    with pytest.raises(ValueError, match="GPUs of different speed"):
        together("x", [(GPU, 1), (dataclasses.replace(GPU, gpu_tflops=300), 1)])
    with pytest.raises(ValueError, match="at least one"):
        together("x", [(GPU, 0)])


def test_never_faster_than_a_part_nor_slower_than_their_sum() -> None:
    draw = random.Random(0)
    for _ in range(200):
        work = Workload(
            hours=draw.uniform(1, 1e6),
            width=draw.randint(160, 3840),
            height=draw.randint(120, 2160),
            source_fps=draw.uniform(10, 60),
            fps=draw.uniform(0.2, 80),
            interleave=draw.randint(0, 20),
            i_macs=draw.uniform(1e8, 1e11),
            p_macs=draw.uniform(1e7, 1e10),
            mbits=draw.uniform(0.1, 30),
            format=draw.choice(["npz", "library"]),
        )
        kind = draw.choice([SMALL, GPU, dataclasses.replace(GPU, network_gbits=draw.uniform(0.01, 10))])
        machines = draw.randint(1, 500)
        found = predict(work, kind, RATES, machines=machines)
        assert found.hours == max(found.by_resource.values()) <= sum(found.by_resource.values())
        assert all(0 < stage.busy <= 1 + 1e-9 for stage in found.stages)
        decisive = max(found.by_resource, key=lambda name: found.by_resource[name])
        assert sum(stage.busy for stage in found.stages if stage.resource == decisive) == pytest.approx(1)
        assert found.bottleneck in [stage.name for stage in found.stages if stage.resource == decisive]
        more = predict(work, kind, RATES, machines=machines + 1)
        assert more.hours <= found.hours
        assert work.frames <= 3600 * work.source_fps


def test_the_fewest_machines_for_a_deadline() -> None:
    driver = predict(WORK, SMALL, RATES, machines=1).by_resource["driver"]
    for deadline in (0.2, 0.5, 1, 3.3, 10, 48, 500):
        found = predict(WORK, SMALL, RATES, deadline_hours=deadline)
        assert driver < found.hours <= deadline
        if found.machines > 1:
            assert predict(WORK, SMALL, RATES, machines=found.machines - 1).hours > deadline
    # Exactly 10 machines' work is not 11 machines'.
    ten = predict(WORK, SMALL, RATES, machines=10).hours
    assert predict(WORK, SMALL, RATES, deadline_hours=ten).machines == 10
    with pytest.raises(CapacityError, match=r"the driver gathers and writes for 0\.12; split the list over 2 runs"):
        predict(WORK, SMALL, RATES, deadline_hours=0.1)


def test_decoding_between_and_beyond_measured_sizes() -> None:
    def seconds(width: int, height: int) -> float:
        work = dataclasses.replace(WORK, width=width, height=height)
        return by_name(predict(work, SMALL, RATES, machines=1))["decode"].seconds / (3600 * 25)

    assert seconds(1000, 100) == pytest.approx(1 / 1000)
    assert seconds(1000, 550) == pytest.approx((1 / 1000 + 1 / 100) / 2)  # half-way
    assert seconds(1000, 50) == pytest.approx(0.5 / 1000)
    assert seconds(2000, 1000) == pytest.approx(2 / 100)
    beyond = predict(dataclasses.replace(WORK, width=2000), SMALL, RATES, machines=1)
    assert [each for each in beyond.assumptions if each.startswith("assumed: in proportion to pixels")]


def test_slower_cores_and_what_the_pipeline_loses() -> None:
    slow = dataclasses.replace(SMALL, core_speed=0.5)
    lossy = dataclasses.replace(RATES, efficiency=rate(0.8))
    full = predict(WORK, SMALL, RATES, machines=1)
    assert predict(WORK, slow, RATES, machines=1).hours == pytest.approx(2 * full.hours)
    assert predict(WORK, SMALL, lossy, machines=1).hours == pytest.approx(full.hours / 0.8)
    assert "0.5 of the speed" in predict(WORK, slow, RATES, machines=1).assumptions[0]
    guessed = dataclasses.replace(RATES, efficiency=rate(1, source="assumed: nothing is lost"))
    assert predict(WORK, SMALL, guessed, machines=1).assumptions == ("assumed: nothing is lost",)


def test_the_network_can_decide() -> None:
    thin = dataclasses.replace(SMALL, network_gbits=0.001)
    found = predict(WORK, thin, RATES, machines=1)
    assert found.bottleneck == "read"
    assert found.hours == pytest.approx(1000 * WORK.mbits / 1)  # one Mbit/s


def test_workload_of_an_encoder_without_weights() -> None:
    model = skeleton("ViT-B/32")
    dense = Workload.of(DenseEncoder(model), hours=1)
    # 50 tokens, 12 blocks of 12 W^2 each, attention's 2 T^2 W, patches and projection: Dosovitskiy et al. by hand.
    width, tokens = 768, 50
    macs = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 49 * 3 * 32**2 * width + width * 512
    assert dense.i_macs == pytest.approx(macs, rel=1e-6) and (dense.interleave, dense.p_macs) == (0, 0)
    reuse = Workload.of(ReuseEncoder(model, interleave=5, drop=0.85), hours=1, width=640, height=360)
    assert reuse.interleave == 5 and reuse.i_macs == dense.i_macs and 0.1 < reuse.p_macs / reuse.i_macs < 0.25
    assert reuse.pixels == 640 * 360
    with pytest.raises(ValueError, match="depend"):
        Workload.of(ReuseEncoder(model, plan="adaptive"), hours=1)


def record(**others: Any) -> dict[str, Any]:
    def stated(value: float) -> dict[str, float]:
        return {"median": value, "p25": 0.9 * value, "p75": 1.1 * value}

    return {
        "machine": {"processor": "a processor"},
        "decode": {"1280x720": {"per_second": stated(300)}, "640x360": {"per_second": stated(1200)}},
        "prepare": {"m": {"640x360": {"per_second": stated(400)}}},
        "encode": {
            "m": {
                "i": {"frames_per_second": stated(20), "macs_per_frame": 4e9},
                "p": {"frames_per_second": stated(100), "macs_per_frame": 5e8},
            }
        },
        "probe": {"videos_per_second": stated(50)},
        "gather": {"rows_per_second": stated(1e6), "dim": 512},
        "write": {"npz": {"rows_per_second": stated(1e5), "dim": 512}},
        "pipeline": {"m 640x360": {"share_of_predicted": 0.85}},
        **others,
    }


def test_rates_of_a_record() -> None:
    rates = Rates.of_record(record(), "m", "m 640x360")
    assert [(size, each.value) for size, each in rates.decode] == [(230_400, 1200), (921_600, 300)]
    assert rates.i_macs.value == 80e9 and rates.p_macs.value == 50e9
    assert rates.write["npz"].value == 512e5 and rates.gather.value == 512e6
    assert rates.efficiency.value == 0.85 and rates.efficiency.measured
    assert rates.i_macs.source == "measured: one core of a processor, m"
    assert not Rates.of_record(record(), "m").efficiency.measured
    with pytest.raises(CapacityError, match=r"model 'other'; it knows m"):
        Rates.of_record(record(), "other")
    with pytest.raises(CapacityError, match="a rate must be a number > 0, got 0"):
        Rates.of_record(record(probe={"videos_per_second": {"median": 0}}), "m")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predict(WORK, SMALL, RATES), "give machines or deadline_hours"),
        (lambda: predict(WORK, SMALL, RATES, machines=1, deadline_hours=1), "one of the two"),
        (lambda: predict(WORK, SMALL, RATES, machines=0), "machines must be at least 1"),
        (lambda: predict(WORK, SMALL, RATES, deadline_hours=-1), "deadline_hours must be a number > 0"),
        (lambda: predict(WORK, SMALL, RATES, deadline_hours=math.nan), "deadline_hours must be a number > 0"),
        (lambda: predict(dataclasses.replace(WORK, format="h5"), SMALL, RATES, machines=1), "there are library, npz"),
        (lambda: dataclasses.replace(WORK, hours=math.inf), "hours must be a number > 0"),
        (lambda: dataclasses.replace(WORK, p_macs=0.0), "p_macs must be a number > 0 where there are P-frames"),
        (lambda: dataclasses.replace(WORK, interleave=-1), "interleave must be 0 or more"),
        (lambda: dataclasses.replace(SMALL, cores=0), "small: cores and core_speed must be > 0"),
        (lambda: dataclasses.replace(GPU, gpu_achieved=30), r"gpu: a GPU needs gpu_tflops > 0 and gpu_achieved in"),
        (lambda: dataclasses.replace(SMALL, network_gbits=0), "network_gbits must be > 0 or None"),
        (lambda: dataclasses.replace(RATES, decode=()), "decode must have a rate"),
        (lambda: dataclasses.replace(RATES, efficiency=rate(80)), "efficiency is a share of 1, got 80"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
