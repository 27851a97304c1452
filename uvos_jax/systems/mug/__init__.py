"""MuG: video object segmentation from unlabelled videos (Lu, Wang, Shen, Tai, Crandall, Hoi 2020).

Learning Video Object Segmentation From Unlabeled Videos, CVPR 2020. No mask is ever looked at:
an embedding learns from four granularities at once. Frame: noisy foreground that a label maker
finds in single images. Short-term: a patch tracked forth and back must return. Long-term: the
matches of two frames of a video should follow one affine map. Video: which video is it. The
network then makes better labels for its own training, and everything repeats (rounds).

`variant="paper"` (`paper.py`) is that. `variant="release"` (`release.py`) is the other network the
authors published, trained on the frame granularity alone with a memory of eight frames, whose
checkpoints `uvos convert mug` reads (configuration `mug:release`).

Labels (`pseudo_labels`): `saliency`, manifold ranking with the boundary prior, computed on the
fly; `cam`, the frozen DeepLab-DenseNet169 of the release (`cam.py`), whose weights are converted
apart (`--part cam`, configuration `release_cam`); `given`, the `masks` of the data, for labels made
beforehand by anything, for example by `uvos predict --crf`. From the second round on they are the
masks of a frozen copy of the network as it was when the round began, which is the same as
rewriting all labels between the rounds, but needs no files and follows any augmentation.

Doubtful or not in the paper's text as known here: the width and shape of the embedding (a linear
projection to `embedding` channels, so that responses can be negative before the sigmoid), the
scale of responses (`response_scale`), the regressor's layers, the number of rounds, thresholds of
labels, the enhancement by other frames at test time (`enhancement`), proposals of the instance
level (any masks can be given; without, the parts of the foreground). The loss of the long-term
granularity is that of soft inlier counts. `release` trains on all frames of a clip, which also make
its memory; the release has one target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.losses import masks
from uvos_jax.losses.masks import weighted_mean
from uvos_jax.modules import attention as attn
from uvos_jax.modules import memory
from uvos_jax.ops.color import rgb_to_lab_bytes
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.ops.saliency import manifold_ranking_saliency
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.systems.mug.granularity import SCALES, scale_of
from uvos_jax.systems.mug.objects import FirstMaskFollower, ObjectNumbers
from uvos_jax.systems.mug.paper import STRIDE, PaperNetwork
from uvos_jax.systems.mug.release import SIZE_MULTIPLE, ReleaseNetwork
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State, Variables

VARIANTS = ("paper", "release")
LABELS = ("saliency", "cam", "given")
ENHANCEMENTS = ("attention", "none")
GRANULARITIES = ("short", "long", "video")
#: Frames of a clip that follow one another; the rest is one per segment of the video.
CONSECUTIVE = 3
#: Parts of the released network and of label makers that never move.
FROZEN = r"^(pseudo_labeller|rgb_encoder|decoder|normalize)/"


@register("mug")
class MuG(System):
    """MuG on video: training without labels, saliency, one-shot masks, object ids."""

    card = ModelCard(
        title="MuG",
        year=2020,
        venue="CVPR",
        official_weights="PyTorch, linked from github.com/carrierlxk/MuG (variant release)",
        parity="names and shapes of the released networks; formulas against NumPy",
        learned="J 0.15 to 0.25 in 160 steps, without masks, objects that stand out",
        davis16_j=58.0,
        davis16_f=51.5,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "network": (r"^(?!pseudo_labeller/|rgb_encoder/|decoder/|normalize/)",),
        "frozen": (FROZEN,),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("variant", VARIANTS),
            ("pseudo_labels", LABELS),
            ("enhancement", ENHANCEMENTS),
            ("response_scale", SCALES),
            ("affinity_scale", SCALES),
            ("attention_impl", attn.IMPLEMENTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        size = tuple(config.input_size)
        self._released = config.variant == "release"
        multiple = SIZE_MULTIPLE if self._released else STRIDE
        if not size or any(n % multiple for n in size):
            raise ConfigError(
                f"config field model.input_size is {size}: both sides must be multiples of "
                f"{multiple} for the variant {config.variant!r}"
            )
        if config.rounds < 1 or config.segments < 2:
            raise ConfigError(
                "config fields model.rounds and model.segments must be at least 1 and 2, got "
                f"{config.rounds} and {config.segments}"
            )
        if config.cycle not in (1, 2):
            raise ConfigError(f"config field model.cycle must be 1 or 2, got {config.cycle}")
        if config.patch % STRIDE or not STRIDE <= config.patch <= min(size):
            raise ConfigError(
                f"config field model.patch is {config.patch}: a multiple of {STRIDE} within the "
                f"input size {size} is needed"
            )
        self._weights = {name: float(config[f"{name}_weight"]) for name in GRANULARITIES}
        trained = () if self._released else tuple(n for n in GRANULARITIES if self._weights[n])
        if "video" in trained and config.num_videos < 2:
            raise ConfigError(
                f"config field model.num_videos is {config.num_videos}: the video granularity "
                "tells at least 2 videos apart; or set model.video_weight=0"
            )
        references = config.num_references
        if not self._released and config.enhancement == "none":
            references = 0
        elif references < 1:
            raise ConfigError(
                f"config field model.num_references must be at least 1, got {references}"
            )
        self.spec = ModelSpec(
            name="mug",
            paper="Lu, Wang, Shen, Tai, Crandall, Hoi: Learning Video Object Segmentation From "
            "Unlabeled Videos, CVPR 2020",
            temporal="global" if references else "frame",
            clip_len=CONSECUTIVE + config.segments,
            input_size=size,
            stride=STRIDE,
            normalization="unit" if self._released else "imagenet",
            outputs=("logits", "labels"),
            causal=True,
            num_references=references,
        )
        cam = None
        if config.pseudo_labels == "cam":
            cam = (
                ("blocks", tuple(config.cam_blocks)),
                ("growth", config.cam_growth),
                ("stem", config.cam_stem),
                ("size", tuple(config.cam_size)),
            )
        common = {
            "cam": cam,
            "attention_impl": config.attention_impl,
            "block_size": config.block_size,
            "dtype": self.compute_dtype,
        }
        if self._released:
            self.module = ReleaseNetwork(
                widths=tuple(config.widths),
                blocks=config.blocks,
                key=config.key,
                value=config.value,
                head_hidden=config.head_hidden,
                head_features=config.head_features,
                colour_widths=tuple(config.colour_widths),
                **common,
            )
        else:
            self.module = PaperNetwork(
                block_counts=tuple(config.block_counts),
                widths=tuple(config.widths),
                embedding=config.embedding,
                patch=config.patch,
                cycle=config.cycle,
                response_scale=config.response_scale,
                target_sigma=config.target_sigma,
                affinity_scale=config.affinity_scale,
                inlier_radius=config.inlier_radius,
                regressor_widths=tuple(config.regressor_widths),
                num_videos=config.num_videos,
                granularities=trained,
                remat=bool(config.get("remat", False)),
                **common,
            )

    # ----- variables and network ----------------------------------------------------------

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any] | None = None) -> Variables:
        """Fresh variables; with several rounds also `batch_stats/teacher`, which makes labels."""
        variables = super().init(rng, batch_shapes)
        return Variables(self._with_teacher(variables, "")) if self._teaches else variables

    @property
    def _teaches(self) -> bool:
        return self.config.rounds > 1

    def _with_teacher(self, variables: Mapping[str, Any], _: str) -> dict[str, Any]:
        """The variables with the present network as the maker of labels."""
        names = self.module.segmenting
        stats = {k: v for k, v in variables.get("batch_stats", {}).items() if k != "teacher"}
        teacher = {
            "params": {k: variables["params"][k] for k in names if k in variables["params"]},
            "batch_stats": {k: stats[k] for k in names if k in stats},
        }
        # copies: a training step may reuse the memory of what it replaces
        teacher = jax.tree.map(jnp.array, teacher)
        return {**variables, "batch_stats": {**stats, "teacher": teacher}}

    def enter_stage(self, name: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Between rounds the labels are rewritten: the network as it is now makes the next ones."""
        if not self._teaches or _round(name) == 0:
            return variables
        return self._with_teacher(variables, name)

    def _network(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables without the teacher."""
        stats = {k: v for k, v in variables.get("batch_stats", {}).items() if k != "teacher"}
        return {"params": variables["params"], "batch_stats": stats}

    def normalize(self, frames: jax.Array) -> jax.Array:
        """What the network eats: ImageNet-normalised RGB, or (released) scaled 8-bit L*a*b*."""
        if not self._released:
            return super().normalize(frames)
        lab = rgb_to_lab_bytes(frames.astype(jnp.float32) / 255.0)
        return ((lab - 128.0) / 128.0).astype(self.compute_dtype)

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """The network on clips, and the labels of their frames.

        Returns:
          `logits [B,T,h,w,1]`, `labels [B,T,h,w]` in [0,1] (made by the round's label maker, no
          gradient), in the released variant `label_logits` if the label maker gives any, and in
          training what `PaperNetwork` returns for the other granularities.
        """
        network = self._network(variables)
        kwargs: dict[str, Any] = {
            "train": train and not self.config.get("freeze_bn", False),
            "memory": min(self.config.segments, batch["frames"].shape[1]),
        }
        if train and not self._released:
            if not rngs or "dropout" not in rngs:
                raise ConfigError("mug draws patches and pairs: pass rngs={'dropout': key}")
            kwargs["key"] = rngs["dropout"]
        frames = self.normalize(batch["frames"])
        if train:
            outputs, updates = self.module.apply(network, frames, mutable=["batch_stats"], **kwargs)
            collections = {k: dict(v) for k, v in dict(updates).items()}
            if self._teaches:
                collections["batch_stats"]["teacher"] = variables["batch_stats"]["teacher"]
        else:
            outputs, collections = self.module.apply(network, frames, **kwargs), {}
        grid = outputs["logits"].shape[2:4]
        labels, logits = self._labels(variables, batch, frames, grid, _round(phase))
        outputs["labels"] = jax.lax.stop_gradient(labels)
        if logits is not None:
            outputs["label_logits"] = jax.lax.stop_gradient(logits)
        return outputs, collections

    # ----- labels -------------------------------------------------------------------------

    def _labels(
        self, variables: Any, batch: Batch, frames: jax.Array, grid: tuple[int, int], number: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """Binary labels `[B,T,h,w]` on the grid, and the logits they come from, if any."""
        config, raw = self.config, batch["frames"]
        B, T, H, W, _ = raw.shape
        if number > 0 and self._teaches:
            outputs = self.module.apply(dict(variables["batch_stats"]["teacher"]), frames,
                                        train=False, memory=config.segments)  # fmt: skip
            logits = outputs["logits"][..., 0].astype(jnp.float32)
            return _above(jax.nn.sigmoid(logits), config.relabel_threshold), logits
        flat = raw.reshape(B * T, H, W, 3)
        if config.pseudo_labels == "given":
            if "masks" not in batch:
                raise DataError(
                    "mug takes its labels from the data (model.pseudo_labels='given'), but the "
                    "batch has no masks: give labels made beforehand, or use 'saliency'"
                )
            target = masks.binary_target(jnp.asarray(batch["masks"])).reshape(B * T, H, W, 1)
            return resize_nearest(target, grid)[..., 0].reshape(B, T, *grid), None
        if config.pseudo_labels == "cam":
            logits = self.module.apply(self._network(variables), flat, method="label")
            logits = resize_bilinear(logits[..., None], grid)[..., 0].reshape(B, T, *grid)
            return _above(jax.nn.sigmoid(logits), config.cam_threshold), logits
        saliency = self._saliency(flat, grid).reshape(B, T, *grid)
        return _above(saliency, config.saliency_threshold), None

    def _saliency(self, frames: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Manifold-ranking saliency `[B,h,w]` of uint8 frames `[B,H,W,3]`."""
        size = tuple(min(n, m) for n, m in zip(frames.shape[1:3], self.config.saliency_size,
                                               strict=True))  # fmt: skip
        small = resize_bilinear(frames.astype(jnp.float32), size)
        maps = manifold_ranking_saliency(small, tuple(self.config.saliency_cells))
        return resize_bilinear(maps[..., None], grid)[..., 0]

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`L_frame + 0.1 L_short + 0.02 L_long + 0.5 L_video`; released: `L_frame + |z - g|`.

        L_frame is the cross entropy of masks and labels on the grid, L_short the squared distance
        of the responses after tracking forth and back and a Gaussian where the patch was cut out,
        L_long the negative share of inliers of the affine map, L_video the cross entropy of the
        video's identity (`example_id` modulo `num_videos`). `|z - g|` compares logits with those
        of the label network, where labels have logits.

        Returns:
          the loss and its terms; `label_share`, the foreground of the labels, is for the log.
        """
        logits = outputs["logits"][..., 0].astype(jnp.float32)
        labels = outputs["labels"].astype(jnp.float32)
        B, T = logits.shape[:2]
        valid = jnp.asarray(batch.get("valid", jnp.ones((B, T), bool)))
        if self.config.pseudo_labels == "given" and _round(phase) == 0 and "has_mask" in batch:
            known = valid & jnp.asarray(batch["has_mask"])
        else:
            known = valid
        weights = jnp.broadcast_to(known[..., None, None].astype(jnp.float32), logits.shape)
        ce = labels * jax.nn.softplus(-logits) + (1.0 - labels) * jax.nn.softplus(logits)
        terms = {"frame": weighted_mean(ce, weights)}
        if self._released:
            if "label_logits" in outputs:
                gap = jnp.abs(logits - outputs["label_logits"])
                terms["gap"] = self.config.gap_weight * weighted_mean(gap, weights)
        else:
            terms |= self._other_granularities(outputs, batch, valid)
        share = weighted_mean(labels, weights)
        return sum(terms.values()), {**terms, "label_share": share}

    def _other_granularities(
        self, outputs: Outputs, batch: Batch, valid: jax.Array
    ) -> dict[str, jax.Array]:
        terms = {}
        run = jnp.all(valid[:, :CONSECUTIVE], axis=1).astype(jnp.float32)
        whole = jnp.all(valid, axis=1).astype(jnp.float32)
        if "response" in outputs:
            gap = jax.nn.sigmoid(outputs["response"]) - outputs["response_target"]
            terms["short"] = weighted_mean(jnp.mean(jnp.square(gap), axis=(1, 2)), run)
        if "inliers" in outputs:
            terms["long"] = weighted_mean(-outputs["inliers"], whole)
        if "video_logits" in outputs:
            identity = jnp.asarray(batch["example_id"]) % self.config.num_videos
            scores = jax.nn.log_softmax(outputs["video_logits"].astype(jnp.float32))
            wanted = jnp.take_along_axis(scores, identity[:, None], axis=1)[:, 0]
            terms["video"] = weighted_mean(-wanted, whole)
        return {name: self._weights[name] * value for name, value in terms.items()}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One stage per round; at the beginning of each but the first the labels are rewritten."""
        total, rounds = int(config.train.total_steps), int(config.model.rounds)
        ends = [round(total * (r + 1) / rounds) for r in range(rounds)]
        frozen = tuple(f"^{name}/" for name in self._frozen_parts())
        return tuple(
            Stage(f"round{r}", end - start, (Phase(f"round{r}", "video", frozen=frozen),))
            for r, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
        )

    def _frozen_parts(self) -> tuple[str, ...]:
        cam = ("pseudo_labeller",) if self.config.pseudo_labels == "cam" else ()
        return cam + (("rgb_encoder", "decoder", "normalize") if self._released else ())

    # ----- video --------------------------------------------------------------------------

    def _features(self, variables: Mapping[str, Any], frames: jax.Array) -> Any:
        """What `predict` needs of uint8 frames `[B,H,W,3]`: a tree of `[B,...]`."""
        network, x = self._network(variables), self.normalize(frames)
        features = self.module.apply(network, x, method="encode")
        if not self._released:
            return {"features": features}
        key, value = self.module.apply(network, features, method="remembered")
        return {"features": features[:2], "key": key, "value": value}

    def _kept(self, features: Any) -> Any:
        """What of it a memory keeps."""
        names = ("key", "value") if self._released else ("features",)
        return {name: features[name] for name in names}

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """Empty memory of a stream (see `uvos_jax.modules.memory`); `()` without references."""
        R = self.spec.num_references
        if not R:
            return ()
        one = jax.ShapeDtypeStruct((batch_size, *frame_size, 3), jnp.uint8)
        shapes = jax.eval_shape(lambda v, x: self._kept(self._features(v, x)), variables, one)
        return memory.empty(shapes, R)

    def prepare(self, variables: Mapping[str, Any], batch: Batch) -> State:
        """What is kept of the frames of `batch`, `{"embedding": tree of [B,N,...]}`."""
        if not self.spec.num_references:
            return ()
        frames = batch["frames"]
        B, N = frames.shape[:2]
        kept = self._kept(self._features(variables, frames.reshape(B * N, *frames.shape[2:])))
        return {"embedding": jax.tree.map(lambda x: x.reshape(B, N, *x.shape[1:]), kept)}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]` (object-level, zero-shot)."""
        frames = chunk["frames"]
        B, T, H, W, _ = frames.shape
        features = self._features(variables, frames.reshape(B * T, H, W, 3))
        in_time = jax.tree.map(lambda x: x.reshape(B, T, *x.shape[1:]).swapaxes(0, 1), features)

        def one_frame(state: State, now: Any) -> tuple[State, jax.Array]:
            if not self.spec.num_references:
                return state, self._mask(variables, now, None, None)
            if "count" not in state:
                return state, self._mask(variables, now, state["embedding"], None)
            kept = self._kept(now)
            references, valid = memory.visible(state, kept)
            logits = self._mask(variables, now, references, valid)
            return memory.remember(state, kept), logits

        state, logits = jax.lax.scan(one_frame, state, in_time)
        return state, self.probabilities(logits.swapaxes(0, 1), (H, W))

    def _mask(self, variables: Any, now: Any, references: Any, valid: Any) -> jax.Array:
        """Logits `[B,h,w,1]` of one frame given what is kept of others `[B,R,...]`."""
        network = self._network(variables)

        def call(method: str, *args: Any) -> jax.Array:
            return self.module.apply(network, *args, method=method)

        if self._released:
            own, kept = (now["key"], now["value"]), (references["key"], references["value"])
            return call("decode", (*now["features"], None), call("read", own, kept, valid))
        features = now["features"]
        if references is not None:
            features = call("enhance", features, references["features"], valid)
        return call("foreground", features)

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """As usual; the released map is enlarged by nearest neighbours after the sigmoid."""
        if not self._released:
            return super().probabilities(logits, size)
        B, T, h, w, _ = logits.shape
        probs = jax.nn.sigmoid(logits.astype(jnp.float32)).reshape(B * T, h, w, 1)
        return resize_nearest(probs, size)[..., 0].reshape(B, T, *size)

    # ----- one shot and objects -----------------------------------------------------------

    #: What `uvos predict` can do beside one foreground, see `uvos_jax.predict.objects`.
    object_modes = ("first_mask", "instances")

    @property
    def matching_scale(self) -> float:
        """Factor on products of `matching_features` when labels travel."""
        channels = self.config.embedding
        return 1.0 if self._released else scale_of(self.config.affinity_scale, channels)

    def matching_features(self, variables: Mapping[str, Any], frames: jax.Array) -> jax.Array:
        """Features `[T,h,w,C]` that frames uint8 `[T,H,W,3]` are compared by."""
        network, x = self._network(variables), self.normalize(frames)
        features = self.module.apply(network, x, method="encode")
        return features[2] if self._released else features

    def propagate_masks(
        self, variables: Mapping[str, Any], frames: Any, first_mask: Any
    ) -> np.ndarray:
        """One-shot segmentation: carries the first frame's labels through a video in memory.

        Args:
          frames: uint8 `[T,H,W,3]` RGB. first_mask: ids `[H,W]` of frame 0, 0 background.

        Returns:
          ids `[T,H,W]` uint8, frame 0 as given.

        Raises:
          ShapeError: frames and mask do not belong together.
        """
        return self.follow(variables, first_mask).step(frames)[0]

    def follow(self, variables: Mapping[str, Any], first_mask: Any) -> FirstMaskFollower:
        """One-shot segmentation of a video that arrives piece by piece."""
        return FirstMaskFollower(self, variables, first_mask)

    def number_objects(self, variables: Mapping[str, Any], **options: float) -> ObjectNumbers:
        """Instances of a video that arrives frame by frame; `options` of `ObjectLinker`."""
        return ObjectNumbers(self, variables, **options)

    def segment_objects(
        self,
        variables: Mapping[str, Any],
        frames: Any,
        probabilities: Any,
        proposals: Sequence[np.ndarray] | None = None,
        **options: float,
    ) -> np.ndarray:
        """Object ids over time, as DAVIS-2017's unsupervised task wants them.

        Args:
          frames: uint8 `[T,H,W,3]`. probabilities: of the foreground, `[T,H,W]`, from `predict`.
          proposals: per frame masks `[N,H,W]` bool of an instance segmenter; None takes the
            connected parts of the foreground.
          options: of `propagation.ObjectLinker`.

        Returns:
          ids `[T,H,W]` uint8, 0 background.

        Raises:
          ShapeError: the arguments do not belong together.
        """
        given = [None] * len(frames) if proposals is None else proposals
        if not len(frames) == len(probabilities) == len(given):
            raise ShapeError(
                f"segment_objects: {len(frames)} frames need as many maps of probabilities and "
                f"sets of proposals, got {len(probabilities)} and {len(given)}"
            )
        numbers = self.number_objects(variables, **options)
        return np.stack(
            [
                numbers.step(np.asarray(frame), np.asarray(prob), masks)
                for frame, prob, masks in zip(frames, probabilities, given, strict=True)
            ]
        )


def _above(x: jax.Array, threshold: float) -> jax.Array:
    return (x > threshold).astype(jnp.float32)


def _round(name: str) -> int:
    """The number of a round from the name of its stage or phase; 0 for any other."""
    number = name.removeprefix("round")
    return int(number) if number.isdigit() else 0
