"""What the names in a weights file say: module and kind of parameter, whose BatchNorm it is, what is a head.

Names are those that frameworks give by themselves: torch, Caffe2, TensorFlow and Keras, Flax, MXNet's Gluon,
Chainer, Paddle, tensorpack.
"""

import re
from dataclasses import dataclass

Modules = dict[str, dict[str, str]]  # module → kind of parameter → the tensor's name

WEIGHT, BIAS = ("weight", "weights", "w", "kernel", "0"), ("bias", "biases", "b", "1")
KINDS = {spelling: kind for kind, all_of in (("weight", WEIGHT), ("bias", BIAS)) for spelling in all_of}


@dataclass(frozen=True)
class Scheme:
    """How a framework names a BatchNorm's parameters, and its default eps, which no file of weights holds."""

    framework: str
    mean: str
    var: str
    scale: str
    shift: str
    eps: float


# Defaults: torch.nn.BatchNorm2d; tf.keras.layers.BatchNormalization and tf.slim; caffe2's SpatialBN ("_riv" is a
# variance: detectron2's c2_model_loading reads it as running_var); flax.linen.BatchNorm; mxnet.gluon.nn.BatchNorm;
# chainer.links.BatchNormalization; paddle.nn.BatchNorm2D; batch_normalization of caffe-tensorflow's
# network.py; tensorpack's BatchNorm.
SCHEMES = (
    Scheme("torch", "running_mean", "running_var", "weight", "bias", 1e-5),
    Scheme("Keras", "moving_mean", "moving_variance", "gamma", "beta", 1e-3),
    Scheme("Caffe2", "rm", "riv", "s", "bias", 1e-5),
    Scheme("Flax", "mean", "var", "scale", "bias", 1e-5),
    Scheme("Gluon", "running_mean", "running_var", "gamma", "beta", 1e-5),
    Scheme("Chainer", "avg_mean", "avg_var", "gamma", "beta", 2e-5),
    Scheme("Paddle", "_mean", "_variance", "weight", "bias", 1e-5),
    Scheme("caffe-tensorflow", "mean", "variance", "scale", "offset", 1e-5),
    Scheme("tensorpack", "mean/ema", "variance/ema", "gamma", "beta", 1e-5),
)
STATISTICS = {kind for scheme in SCHEMES for kind in (scheme.mean, scheme.var)} | {"moving_var", "running_variance"}
OWN = {kind for scheme in SCHEMES for kind in (scheme.scale, scheme.shift)} - {"weight", "bias"}

PARAMETER = re.compile(
    rf"(?P<module>.*?)[./_](?P<kind>{'|'.join(sorted([*KINDS, *STATISTICS, *OWN], key=len, reverse=True))})",
    re.IGNORECASE | re.DOTALL,
)
COLLECTION = re.compile(r"(^|[./])(?:params|batch_stats)[./]|^(?:arg|aux):")  # Flax's two trees; MXNet's
# says nothing of what the trunk computes: counters, and what optimizers keep of every parameter
TRAINING = re.compile(
    r"num_batches_tracked$|momentum|(^|[._/])(?:optim(?:izer)?s?|opt_state|scheduler|scaler|exp_avg(?:_sq)?|adam(?:_\d)?|"
    r"rmsprop(?:_\d)?|epoch|iteration|global_step|step|learning_rate|lr|best_\w+)(?:[._/:]|$)|(?-i:/N$)",
    re.IGNORECASE,
)
# Words in names of what stands behind or beside a trunk, and of what scales or bends channels; without a plural's s.
HEADS = re.compile(
    "fc|ip|lin|linear|dense|classifier|classification|clas|cl|head|projector|projection|proj|predictor|prediction|pred|"
    "mlp|logit|score|output|out|decoder|dec|deconv|deconvolution|upconv|up|upsample|upscore|unpool|transpose|"
    "convtranspose|discriminator|disc|generator|gen|adversary|adv|queue|los|criterion|top|softmax|prob|embedding|embed|"
    "bbox|rpn|roi|aux|auxiliary|side|dsn|probe|bridge|bottleneck|memory|lemniscate|centroid|prototype|temperature|"
    "rotation|jigsaw|accuracy|acc"
)
SCALES = re.compile("gain|scale|gamma|beta|alpha|slope|prelu|relu|act|activation|norm|bn|bia|shift|mask")


def modules_of(names: list[str]) -> Modules:
    """Module → kind → name. Of two spellings of one kind the first by name is taken; the other is left over."""
    found: Modules = {}
    for name in sorted(names):
        if match := PARAMETER.fullmatch(plain(name)):
            kind = match["kind"].lower()
            found.setdefault(match["module"], {}).setdefault(KINDS.get(kind, kind), name)
    return found


def plain(name: str) -> str:
    """A name without TensorFlow's output number and without the collections that other frameworks sort by."""
    return COLLECTION.sub(r"\1", name.removesuffix(":0"))


def scheme_of(names: dict[str, str]) -> Scheme | None:
    """Whose BatchNorm a module is, by its kinds of parameters, None if that cannot be told."""
    kinds = {kind for kind, name in names.items() if not TRAINING.search(name)}
    fitting = (s for s in SCHEMES if {s.mean, s.var} <= kinds <= {s.mean, s.var, s.scale, s.shift})
    return next(fitting, None)


def words(name: str) -> set[str]:
    """ "top_layers.1.fc6" → {"top", "layer", "", "fc"}: its parts in lower case, without numbers and plural."""
    parts = re.split(r"[._/]", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))
    return {re.sub(r"\d", "", part).lower().removesuffix("s") for part in parts}


def of_a_head(name: str) -> bool:
    """Whether a name says by itself that it is of a layer behind or beside the trunk."""
    return any(HEADS.fullmatch(word) for word in words(name))


def of_a_scale(name: str) -> bool:
    """Whether a name says that it scales, shifts or bends something."""
    return any(SCALES.fullmatch(word) for word in words(name))
