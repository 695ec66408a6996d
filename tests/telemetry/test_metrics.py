"""The metrics page: names, kinds and a bounded number of lines."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from walstream.telemetry.metrics import JOIN_RESULTS, WATCHED, Metrics


def families(metrics: Metrics) -> dict[str, str]:
    text, content_type = metrics.page()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {family.name: family.type for family in text_string_to_metric_families(text.decode())}


def test_every_name_of_ours_begins_with_walstream() -> None:
    ours = {name for name in families(Metrics()) if not name.startswith(("process_", "python_"))}
    assert ours
    assert all(name.startswith("walstream_") for name in ours)


def test_watched_values_are_read_when_the_page_is_asked_for() -> None:
    metrics = Metrics()
    value = 1.0
    for name in WATCHED:
        metrics.watch(name, lambda: value)
    found = families(metrics)
    assert all(f"walstream_{name}" in found for name in WATCHED)
    assert found["walstream_frames_out"] == "counter"
    assert found["walstream_connections"] == "gauge"
    value = 7.0
    assert "walstream_frames_out_total 7.0" in metrics.page()[0].decode()


def test_close_codes_that_clients_make_up_share_one_line() -> None:
    metrics = Metrics()
    for code in range(3000, 5000):
        metrics.closed(code)
    metrics.closed(1000)
    lines = [line for line in metrics.page()[0].decode().splitlines() if line.startswith("walstream_closes_total{")]
    assert sorted(lines) == ['walstream_closes_total{code="1000"} 1.0', 'walstream_closes_total{code="other"} 2000.0']


def test_joins_are_there_by_result_before_the_first_one() -> None:
    metrics = Metrics()
    metrics.joined("refused")
    text = metrics.page()[0].decode()
    for result in JOIN_RESULTS:
        assert f'walstream_joins_total{{result="{result}"}} {float(result == "refused")}' in text


def test_two_nodes_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.slow_closes.inc()
    assert "walstream_slow_closes_total 1.0" in first.page()[0].decode()
    assert "walstream_slow_closes_total 0.0" in second.page()[0].decode()
