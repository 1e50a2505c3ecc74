"""What is told of a network adapter's channel, to traces. Root side."""

from __future__ import annotations

from collections.abc import Sequence

from hypervisor.trace import Layer, Trace
from vsp_vsc.network.frame_words import batch_words


class Told:
    """For one channel."""

    def __init__(self, trace: Trace, partition_id: int, channel_id: int) -> None:
        self._trace = trace
        self._partition_id = partition_id
        self._channel_id = channel_id

    def refuse(self, reason: str, transaction_id: int) -> None:
        """A message of the guest's with a mistake that costs it no more than that."""
        self._trace.warn(
            Layer.DEVICE,
            "network_refused",
            self._partition_id,
            reason,
            channel=self._channel_id,
            transaction=transaction_id,
        )

    def bad_completion(self, kind: int, transaction_id: int) -> None:
        """The guest gives back what it does not have."""
        words = f"NVSP message {kind} for transaction {transaction_id:#x}, which is not open"
        self._trace.warn(Layer.DEVICE, "network_bad_completion", self._partition_id, words, channel=self._channel_id)

    def frames(self, frames: Sequence[bytes], size: int, direction: str) -> None:
        """A batch; asked for only while somebody listens."""
        self._trace.emit(
            Layer.DEVICE,
            "network_frames",
            self._partition_id,
            direction=direction,
            channel=self._channel_id,
            size=size,
            words=batch_words(frames),
        )

    def say(self, words: str, direction: str) -> None:
        """What was asked or told, if somebody listens."""
        if self._trace.on:
            self._trace.emit(
                Layer.DEVICE,
                "network_control",
                self._partition_id,
                direction=direction,
                channel=self._channel_id,
                words=words,
            )
