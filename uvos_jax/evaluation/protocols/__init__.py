"""Protocols by data set: what is scored, how it is averaged, and the sentence that says so."""

from uvos_jax.evaluation.protocols.base import Protocol, Row
from uvos_jax.evaluation.protocols.davis import Davis16, Davis17Unsupervised, SequenceScorer
from uvos_jax.evaluation.protocols.flow import OpticalFlow
from uvos_jax.evaluation.protocols.saliency import VideoSaliency
from uvos_jax.evaluation.protocols.sparse import Fbms59, SegTrack2, YouTubeObjects

__all__ = ["PROTOCOLS", "Protocol", "Row", "SequenceScorer"]

PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (
        Davis16,
        Davis17Unsupervised,
        Fbms59,
        YouTubeObjects,
        SegTrack2,
        VideoSaliency,
        OpticalFlow,
    )
}
