"""Where each route that the table of OpenAI's calls does not have is tested."""

from __future__ import annotations

ELSEWHERE = {
    **dict.fromkeys(
        ("POST /v1/responses", "GET /v1/responses/{response_id}", "DELETE /v1/responses/{response_id}",
         "POST /v1/responses/{response_id}/cancel", "GET /v1/responses/{response_id}/input_items"),
        "integration/test_responses.py::test_the_package_without_async_has_the_same",
    ),
    "WS /v1/realtime": "integration/test_realtime.py::test_the_synchronous_client_is_served",
    "POST /v1/realtime/{what:path}":
        "integration/test_realtime.py::test_other_ways_to_a_conversation_are_refused_with_the_one_there_is",
}  # fmt: skip
"""Routes of the package that tests of their own drive by it."""
OURS = {
    "POST /v1/score": "integration/test_scoring.py::test_as_many_texts_are_scored_in_pairs",
    "POST /score": "integration/test_scoring.py::test_one_text_is_scored_with_each_of_many_by_their_embeddings",
    **dict.fromkeys(
        ("POST /v1/rerank", "POST /v2/rerank", "POST /rerank"),
        "integration/test_scoring.py::test_documents_come_back_the_best_first",
    ),
    **dict.fromkeys(
        ("POST /v1/tokenize", "POST /tokenize", "POST /v1/detokenize", "POST /detokenize"),
        "e2e/test_text_surface.py::test_a_text_becomes_tokens_and_a_text_again",
    ),
    "GET /v1/audio/voices": "integration/test_voices.py",
    "POST /v1/videos/sync": "e2e/test_frontdoor_openai.py::test_video_is_right_and_comes_only_where_it_is_asked_for",
    **dict.fromkeys(
        ("GET /v1/cluster", "GET /v1/cluster/events"),
        "integration/test_cluster_routes.py::test_cluster_is_seen_live_with_rates_and_times",
    ),
    "GET /v1/requests": "integration/test_cluster_routes.py::test_latest_requests_are_those_of_the_key_and_all_for_an_admin",
    "GET /v1/requests/{request_id}/trace": "integration/test_cluster_routes.py::test_trace_is_the_record_of_waits_and_runs",
    **dict.fromkeys(
        ("GET /v1/dead_letters", "POST /v1/dead_letters/{request_id}/retry", "DELETE /v1/dead_letters/{request_id}"),
        "integration/test_cluster_routes.py::test_dead_letter_is_listed_retried_and_dropped",
    ),
    **dict.fromkeys(
        ("POST /v1/replicas/drain", "POST /v1/replicas/resume", "POST /v1/replicas/restart"),
        "integration/test_cluster_routes.py::test_order_to_one_replica_is_carried_out",
    ),
    **dict.fromkeys(("GET /ui", "GET /ui/{name}"), "unit/test_frontdoor_dashboard.py"),
    "GET /v1/files/{file_id}/content/{token}":
        "integration/test_image_links.py::test_an_image_is_read_by_its_link_without_a_key_and_is_a_file_of_its_owner",
    "GET /v1/requests/{request_id}": "integration/test_frontdoor_requests.py::test_a_finished_request_is_read_by_its_id",
    "DELETE /v1/requests/{request_id}":
        "integration/test_frontdoor_requests.py::test_cancelling_is_acknowledged_and_seen_by_the_waiting_caller",
    "POST /v1/requests/{request_id}/input": "full/test_open_input_front_doors.py",
    **dict.fromkeys(
        ("POST /v1/omni/sleep", "POST /v1/omni/wakeup", "POST /pause", "POST /resume", "GET /is_paused", "POST /start_profile",
         "POST /stop_profile", "POST /reset_prefix_cache"),
        "integration/test_facade_routes.py",
    ),
    **dict.fromkeys(("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"), "full/test_adapters_at_run_time.py"),
    **dict.fromkeys(
        ("GET /live", "GET /health", "GET /ready"),
        "integration/test_frontdoor_errors.py::test_probes_say_503_and_requests_fail_typed_when_the_broker_is_gone",
    ),
    "GET /metrics": "integration/test_metrics.py",
    "GET /version": "integration/test_frontdoor_http.py::test_head_is_answered_as_get_without_a_body",
}  # fmt: skip
"""Routes that the package does not have, and their tests."""
