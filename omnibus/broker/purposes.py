"""The purposes of permissions, in words: by the subject that a permission is of, what it is needed for. Pure."""

from __future__ import annotations

import re

_STAGE = r"stage-(?P<stage>\d+)-(?P<lane>[\w-]+)"
_PURPOSES = (
    (r"\$SYS\.REQ\.USER\.INFO", "ask for the server's time and for its own permissions"),
    (r"\$SYS\.ACCOUNT\..*\.DISCONNECT", "hear at once that the connection of a replica is gone"),
    (r"_INBOX.*", "receive answers"),
    (rf"\$JS\.API\.CONSUMER\.MSG\.NEXT\..*\.{_STAGE}", "take tasks of stage {stage} from the lane {lane}"),
    (rf"\$JS\.API\.CONSUMER\.INFO\..*\.{_STAGE}", "see how many tasks of stage {stage} wait on the lane {lane}"),
    (rf"\$JS\.ACK\..*\.{_STAGE}\..*", "acknowledge or return tasks of stage {stage} from the lane {lane}"),
    (r"\$JS\.API\.CONSUMER\.MSG\.NEXT\..*", "take raw requests and events"),
    (r"\$JS\.ACK\..*", "acknowledge or return messages"),
    (r"\$JS\.API\.CONSUMER\.CREATE\.KV_omni-pipelines\..*", "notice new pipelines and pauses"),
    (r"\$JS\.API\.CONSUMER\.CREATE\.KV_.*", "follow which replicas are up"),
    (r"\$JS\.API\.CONSUMER\.(CREATE|DELETE)\..*", "make and remove consumers"),
    (r"\$JS\.API\.CONSUMER\.(INFO|LIST)\..*", "see how long queues are"),
    (r"\$JS\.API\.STREAM\.(CREATE|UPDATE|DELETE)\..*", "make, change and remove streams"),
    (r"\$JS\.API\.STREAM\.(PURGE|MSG\.DELETE)\..*", "remove what ended requests have left"),
    (r"\$JS\.API\.STREAM\.INFO\..*", "see streams and what they hold"),
    (r"\$JS\.API\.(DIRECT\.GET|STREAM\.MSG\.GET)\.KV_omni-pipelines.*", "read deployed pipelines and pauses"),
    (r"\$JS\.API\.(DIRECT\.GET|STREAM\.MSG\.GET)\.KV_.*-replicas.*", "read which replicas there are"),
    (r"\$JS\.API\.(DIRECT\.GET|STREAM\.MSG\.GET)\.KV_.*", "read the records of requests"),
    (r"\$JS\.API\.DIRECT\.GET\.OBJ_.*", "read payloads"),
    (r"\$JS\.API\.(DIRECT\.GET|STREAM\.MSG\.GET)\..*", "read queued tasks"),
    (r"\$KV\.omni-pipelines\..*", "deploy pipelines and pause stages"),
    (r"\$KV\..*-replicas\..*", "register replicas and mark them down"),
    (r"\$KV\..*", "write the records of requests"),
    (r"\$O\..*", "store payloads"),
    (r"omni\.[^.]+\.task\.(?P<stage>\d+|\*)\..*", "exchange tasks of stage {stage}"),
    (r"omni\.[^.]+\.event\..*", "report results and attempts"),
    (r"omni\.[^.]+\.timer\..*", "set deadlines"),
    (r"omni\.[^.]+\.out\..*", "exchange deltas and answers to callers"),
    (r"omni\.[^.]+\.claim\..*", "tell which tasks a replica has in hand"),
    (r"omni\.[^.]+\.ctl\.(all|\*)", "cancel requests"),
    (r"omni\.[^.]+\.ctl\..*", "order a restart or another call of a replica"),
    (r"omni\.[^.]+\.ask\..*", "exchange questions and answers on running requests"),
    (r"omni\.[^.]+\.serve\..*", "have stored texts and payloads of ended requests found or removed"),
    (r"omni\.[^.]+\.request\..*", "send raw requests"),
)  # fmt: skip
"""Patterns of subjects as the table of roles writes them; the first that takes all of a subject counts."""
_COMPILED = tuple((re.compile(pattern), words) for pattern, words in _PURPOSES)


def purpose(subject: str) -> str:
    """Return what a permission on this subject is needed for; raises LookupError for none of the table of roles."""
    for pattern, words in _COMPILED:
        if (found := pattern.fullmatch(subject)) is not None:
            return words.format(**found.groupdict())
    raise LookupError(f"no purpose is known of {subject}")
