"""Any timm model that gives maps of several strides, below the FPN of the released models."""

import contextlib
import functools
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from tood.modeling.backbone.fpn import count_top_levels, make_tood_fpn
from tood.modeling.backbone.timm_convs import Pair, find_pairs, speed_up_convs
from tood.modeling.cpu import order_for_gradients
from tood.utils.errors import UserError, format_reason
from tood.utils.suggest import suggest

STRIDES = (4, 8, 16, 32)  # of the maps that can be used
# Options that make a transformer accept images of any size.
OPTIONS: Tuple[Dict[str, bool], ...] = (
    {},
    {"dynamic_img_size": True},
    {"strict_img_size": False},  # Swin before timm 1.0.31
)
# Multiples to which images are padded: of 32 strides, or of windows at these strides.
DIVISIBILITIES = (32, 64, 128, 224, 256, 384)


class Level(NamedTuple):
    """A map that a model makes."""

    out_index: int  # as timm counts the maps, or the blocks, of a model
    channels: int
    stride: int
    channels_last: bool  # (N, H, W, C)


def _name(stride: int) -> str:
    return f"c{stride.bit_length() - 1}"


class TimmBackbone(Backbone):
    """The feature maps of a timm model, "c2" to "c5" by their strides 4 to 32.

    A map of a stride that the model lacks is made of its neighbour by a strided or a transposed
    convolution: a plain vision transformer has only the stride 16.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_indices: Sequence[int] = (),
        freeze_at: int = 0,
        drop_path: float = 0.0,
        strides: Sequence[int] = STRIDES[1:],
    ):
        """
        Args:
            name: name of a timm model.
            pretrained: start from timm's weights, which are fetched.
            out_indices: indices of the maps in timm; default: the deepest of each stride.
            freeze_at: number of first stages that are not trained. A stage ends with a map.
            drop_path: rate of stochastic depth.
            strides: strides of the maps for an FPN: 8, 16 and 32, or 4 as well.

        Raises:
            UserError: for a name, indices or rate that it does not have, or a model for images of
                one size.
        """
        super().__init__()
        self.strides = tuple(strides)
        options, self._divisibility, levels = inspect_model(name, tuple(out_indices))
        levels = list({x.stride: x for x in levels if x.stride in STRIDES}.values())
        if not {x.stride for x in levels} & set(STRIDES[1:]):
            raise UserError(
                f"The timm model {name} has no map of stride 8, 16 or 32; name another one with "
                "MODEL.TIMM.NAME."
            )
        rate = {"drop_path_rate": drop_path} if drop_path else {}
        options = dict(options, **rate, out_indices=tuple(x.out_index for x in levels))
        self.model = _create(name, pretrained, **options)
        self.levels = sorted(levels, key=lambda x: x.stride)
        self.made = nn.ModuleDict()
        self.shapes: Dict[str, ShapeSpec] = {}
        self._complete()
        _freeze(self.model, freeze_at)
        pairs = _find_pairs(name, self._divisibility, tuple(options.items()))
        speed_up_convs(self.model, pairs)

    def _complete(self) -> None:
        """Make the maps of the wanted strides that the model lacks, from fine to coarse."""
        channels = {x.stride: x.channels for x in self.levels}
        for stride in sorted(self.strides):
            if stride in channels:
                continue
            if stride // 2 in channels:
                width = channels[stride // 2]
                self.made[_name(stride)] = Conv2d(width, width, 3, stride=2, padding=1)
            else:
                coarser = min(channels)
                width, factor = channels[coarser], coarser // stride
                self.made[_name(stride)] = ConvTranspose2d(width, width, factor, stride=factor)
            channels[stride] = width
        for stride in sorted(channels):
            self.shapes[_name(stride)] = ShapeSpec(channels=channels[stride], stride=stride)

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W), H and W multiples of ``size_divisibility``.

        Returns:
            maps (N, C, H / stride, W / stride) by name.
        """
        if images.device.type == "cpu":
            # Depthwise convolutions are a third quicker so, and the rest of the network follows,
            # but for what order_for_gradients finds slow.
            images = images.contiguous(memory_format=torch.channels_last)
        by_index = dict(zip(sorted(x.out_index for x in self.levels), self.model(images)))
        maps = {}
        for level in self.levels:
            x = by_index[level.out_index]
            x = x.permute(0, 3, 1, 2) if level.channels_last else x
            maps[_name(level.stride)] = order_for_gradients(x)
        finest = min(maps)
        for name, layer in self.made.items():
            source = finest if name < finest else f"c{int(name[1]) - 1}"
            maps[name] = layer(maps[source])
        return {name: maps[name] for name in self.shapes}

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return self.shapes

    @property
    def size_divisibility(self) -> int:
        """The multiple, in pixels, to which images are padded."""
        return self._divisibility


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape) -> FPN:
    """Call :func:`make_timm_fpn` on the timm model of a config, ``MODEL.TIMM``."""
    timm = cfg.MODEL.TIMM
    return make_timm_fpn(
        bottom_up=TimmBackbone(
            timm.NAME,
            pretrained=timm.PRETRAINED and not cfg.MODEL.WEIGHTS,
            out_indices=timm.OUT_INDICES,
            freeze_at=timm.FREEZE_AT,
            drop_path=timm.DROP_PATH,
            strides=STRIDES if "p2" in cfg.MODEL.TOOD.IN_FEATURES else STRIDES[1:],
        ),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        num_top_levels=count_top_levels(cfg.MODEL.TOOD.IN_FEATURES),
        conv_type=cfg.MODEL.TOOD.CONV_TYPE,
    )


def make_timm_fpn(*, bottom_up: TimmBackbone, **options) -> FPN:
    """Return :func:`~tood.modeling.backbone.fpn.make_tood_fpn` on the maps that a model is asked
    for: P3 to P7, or P2 to P7.
    """
    in_features = [_name(stride) for stride in sorted(bottom_up.strides)]
    fpn = make_tood_fpn(bottom_up=bottom_up, in_features=in_features, **options)
    fpn._size_divisibility = bottom_up.size_divisibility  # Detectron2's would be C5's stride
    return fpn


@functools.cache
def inspect_model(name: str, out_indices: Tuple[int, ...] = ()) -> Tuple[Dict, int, List[Level]]:
    """Find a model's options, image sizes and maps, without memory for its weights. A training
    builds its model several times, and passes on a device without numbers are slow: one is enough.

    Args:
        out_indices: indices of the maps; default: those that timm returns.

    Returns:
        arguments for it, the multiple of its images' sides, and its maps.

    Raises:
        UserError: for an unknown model or map, or a model for images of one size.
    """
    reason, chosen = "", {"out_indices": out_indices} if out_indices else {}
    for options in OPTIONS:
        try:
            with torch.device("meta"):
                model = _create(name, False, **options, **chosen)
        except TypeError:  # an option of other models
            continue
        for divisibility in DIVISIBILITIES:
            try:
                return options, divisibility, _find_levels(model.eval(), divisibility)
            except (AssertionError, RuntimeError, ValueError, TypeError) as error:
                reason = reason or format_reason(error)
    raise UserError(
        f"The timm model {name} does not take images of other sizes than it was made for "
        f"({reason}); name another one with MODEL.TIMM.NAME."
    )


@functools.cache
def _find_pairs(name: str, size: int, options: Tuple[Tuple[str, Any], ...]) -> List[Pair]:
    with torch.device("meta"):
        return find_pairs(_create(name, False, **dict(options)), size)


@torch.no_grad()
def _find_levels(model: nn.Module, divisibility: int) -> List[Level]:
    height, width = divisibility * 2, divisibility
    maps = model(torch.zeros(1, 3, height, width, device="meta"))
    info: Any = model.feature_info
    levels = []
    for i, x, channels, stride in zip(info.out_indices, maps, info.channels(), info.reduction()):
        shape, wanted = tuple(x.shape[1:]), (height // stride, width // stride)
        if shape not in ((channels, *wanted), (*wanted, channels)):
            raise ValueError(f"its map {i} is of the shape {shape}")
        last = shape == (*wanted, channels) and shape != (channels, *wanted)
        levels.append(Level(i, channels, stride, last))
    return levels


def _create(name: str, pretrained: bool, **options) -> nn.Module:
    check_name(name)
    try:
        return import_timm().create_model(
            name, pretrained=pretrained, features_only=True, **options
        )
    except (AssertionError, IndexError) as error:
        raise UserError(
            f"MODEL.TIMM.OUT_INDICES is {options.get('out_indices')}, which the timm model {name} "
            f"does not have ({format_reason(error)})."
        ) from error
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"The timm model {name} gives no maps ({format_reason(error)}); name another one with "
            "MODEL.TIMM.NAME."
        ) from error
    except (OSError, ValueError) as error:  # raised by the hub
        raise UserError(
            f"The weights of the timm model {name} cannot be fetched ({format_reason(error)}); set "
            "MODEL.TIMM.PRETRAINED False, and name a file with MODEL.WEIGHTS."
        ) from error


def check_name(name: str) -> None:
    """Raise a UserError for a name that timm does not have."""
    timm = import_timm()
    if not timm.is_model(name):
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have"
            f"{suggest(name, timm.list_models(), cutoff=0)}"
        )


def pixel_statistics(name: str) -> Tuple[List[float], List[float]]:
    """Return mean and standard deviation of the channels R, G, B that a model was trained with, for
    pixels of 0 to 255.

    Raises:
        UserError: for a name that timm does not have.
    """
    check_name(name)
    known = import_timm().get_pretrained_cfg(name)
    mean, std = (known.mean, known.std) if known else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return [255 * x for x in mean], [255 * x for x in std]


@contextlib.contextmanager
def constant_same_padding() -> Iterator[None]:
    """Make timm's models with TensorFlow's "SAME" padding pad by numbers while they are traced.

    timm computes them from the size of each map, by floats: for a symbolic size this makes a term
    that grows with each layer, and PyTorch's exporter does not finish. Strides divide the maps of
    images that are padded to ``size_divisibility``, so the numbers are always the same.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # no such model has been made
        yield
        return

    def same_padding(size, kernel_size: int, stride: int, dilation: int) -> int:
        return max((kernel_size - 1) * dilation + 1 - stride, 0)

    original, padding.get_same_padding = padding.get_same_padding, same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


def import_timm():
    """Import timm, an extra dependency; a UserError says how to install it."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "build_timm_fpn_backbone needs the package timm: pip install -e .[timm]."
        ) from error
    return timm


def _freeze(model: nn.Module, num_stages: int) -> None:
    """Freeze all layers of a model up to the end of its first stages."""
    info: Any = model.feature_info
    stages = [x["module"] for x in info.info[:num_stages]]
    ends = tuple(f"{form}." for end in stages for form in (end, end.replace(".", "_")))
    names = [f"{name.removeprefix('model.')}." for name, _ in model.named_modules()]
    last = max((i for i, name in enumerate(names) if name.startswith(ends)), default=-1)
    if num_stages and last < 0:
        raise UserError(
            f"MODEL.TIMM.FREEZE_AT is {num_stages}, but timm does not report where the stages of "
            "this model end; set it to 0."
        )
    for module in list(model.modules())[: last + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
