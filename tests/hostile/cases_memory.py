"""Dynamic memory in the table of malformed inputs: case 107, which is not on the list that the host is held to."""

from __future__ import annotations

from typing import Final

from tests.hostile.case_table import Elsewhere

MEMORY_CASES: Final = (
    Elsewhere(
        107,
        "pages in the balloon that the guest has not, half has, names twice, or was not asked for",
        "stopped; the guest has its pages again, and whoever asked is told",
        "tests/hostile/test_memory.py::test_107_lies_about_pages",
    ),
    Elsewhere(
        107,
        "pages that are in the balloon already",
        "stopped; what was given before comes back empty",
        "tests/hostile/test_memory.py::test_107_pages_in_the_balloon_again",
    ),
    Elsewhere(
        107,
        "no answer to a balloon request, or a late one",
        "nothing else is asked; whoever asked gives up; a late answer counts",
        "tests/hostile/test_memory.py::test_107_a_guest_that_does_not_answer",
    ),
    Elsewhere(
        107,
        "a status report with all bits set; more memory taken than was added",
        "the demand is cut to what can be; stopped",
        "tests/hostile/test_memory.py::test_107_a_status_that_cannot_be",
    ),
    Elsewhere(
        107,
        "added memory that is taken in part, not now, or never",
        "the rest is the host's again at once; not offered again where it said never",
        "tests/hostile/test_memory.py::test_107_memory_that_it_does_not_take",
    ),
    Elsewhere(
        107,
        "rings, message page and hypercall page in the balloon",
        "they read as zeros: stopped where that is no ring any more",
        "tests/hostile/test_memory.py::test_107_pages_that_the_bus_itself_uses",
    ),
    Elsewhere(
        107,
        "added memory with overlay pages and a ring in it, that is then not taken",
        "the rest is the host's again at once, with all that is in it",
        "tests/hostile/test_memory.py::test_107_added_memory_with_pages_of_the_bus_in_it",
    ),
    Elsewhere(
        107,
        "a balloon of many single pages, which the guest goes on using",
        "each message costs the same; what is written there is gone a minute later, so many runs a second",
        "tests/hostile/test_memory.py::test_107_single_pages_and_what_is_written_there",
    ),
    Elsewhere(
        107,
        "a balloon of more than 131,072 runs of pages",
        "nothing more is asked for",
        "tests/hostile/test_memory.py::test_107_a_balloon_of_very_many_runs",
    ),
)
