"""How files of other frameworks name the layers of our networks.

A layout is one table: from a layer's name in the file to its path in our tree, and to what is done
to its arrays.
"""

from typing import NamedTuple


class Rule(NamedTuple):
    """One line of a layout.

    Attributes:
      pattern: of a layer's whole name in the file.
      path: of the layer in our tree, with the pattern's groups; None: none of our layers.
      kind: what its arrays are: "conv", a convolution; "patch", a convolution or an inner product
        over a patch; "dense", an inner product; "offsets", one that gives box offsets;
        "upsample", a deconvolution; "torchvision", the convolution of an RGB image.
    """

    pattern: str
    path: str | None
    kind: str = ""


class Layout(NamedTuple):
    """How a kind of file names its layers.

    Attributes:
      sign: pattern of the name of a layer that only this layout has.
      rules: the table; the first rule that fits counts.
      covers: pattern of our layers that such a file must have.
      joins: (pattern of a name, name of another layer): normalisations and PReLUs, which have names
        of their own, and the layer that they are a part of. It comes first in the file, or is none.
      epsilons: (pattern of a normalisation's name, what it adds to the variance), of those that add
        another number than torch's usual 1e-5.
    """

    sign: str
    rules: tuple[Rule, ...]
    covers: str = ".*"
    joins: tuple[tuple[str, str], ...] = ()
    epsilons: tuple[tuple[str, float], ...] = ()


_TRUNK = Rule(r"conv[1-5](_[1-3])?", r"backbone/\g<0>", "conv")
_FC = Rule(r"(fc[67])(-conv)?", r"\1", "patch")
_CLASSIFIER = r"backbone/.*|fc6|fc7"
_VGG16_STAGES = {  # torchvision's positions of VGG-16's convolutions
    **{2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2", 14: "conv3_3"},
    **{17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 24: "conv5_1", 26: "conv5_2", 28: "conv5_3"},
}
_EESP_OLD = r"base_net\.level([2-4])_0\.eesp\.", r"base_net\.level([34])\.(\d)\."
_EESP_NEW = r"level\1/block/", r"level\1_\2/"
_EESP_LAYERS = (
    ("proj_1x1\\.conv", "project"),
    *((rf"spp_dw\.{branch}\.conv", f"dilated{branch}") for branch in range(4)),
    ("br_after_cat", "norm"),
    ("conv_1x1_exp\\.conv", "expand"),
)

# torchvision's trunks, and the joins of their normalisations.
_TORCHVISION_TRUNKS = (
    Rule(r"backbone\.(?:body\.)?conv1", r"backbone/conv1", "conv"),
    *(
        Rule(rf"backbone\.(?:body\.)?layer{stage - 1}\.{block}\.{old}", path + new, "conv")
        for stage in range(2, 6)
        for block in range(23)
        for path in [f"backbone/stage{stage}_{block + 1}/"]
        for old, new in ((r"(conv[1-3])", r"\1"), (r"downsample\.0", "shortcut"))
    ),
    Rule(r"backbone\.0\.0", "backbone/conv1", "conv"),
    Rule(r"backbone\.16\.0", "backbone/last", "conv"),
    # The first block expands nothing.
    Rule(r"backbone\.1\.block\.0\.0", "backbone/block1/depthwise", "conv"),
    Rule(r"backbone\.1\.block\.1\.0", "backbone/block1/project", "conv"),
    Rule(r"backbone\.(\d+)\.block\.0\.0", r"backbone/block\1/expand", "conv"),
    Rule(r"backbone\.(\d+)\.block\.1\.0", r"backbone/block\1/depthwise", "conv"),
    Rule(r"backbone\.(\d+)\.block\.2\.fc1", r"backbone/block\1/squeeze", "conv"),
    Rule(r"backbone\.(\d+)\.block\.2\.fc2", r"backbone/block\1/excite", "conv"),
    Rule(r"backbone\.(\d+)\.block\.[23]\.0", r"backbone/block\1/project", "conv"),
    Rule(r"aux_classifier\..*", None),  # which only training uses
)
_TORCHVISION_JOINS = (
    (r"(backbone\..*)bn([1-3])", r"\1conv\2"),
    (r"(backbone\..*\.downsample)\.1", r"\1.0"),
    (r"(backbone\.(?:\d+|\d+\.block\.\d))\.1", r"\1.0"),
)
_TORCHVISION_EPSILONS = ((r"backbone\.\d+\..*", 1e-3),)  # MobileNetV3's
# The published detectors were trained without it, and torchvision sets it to 0 for them.
_FROZEN_EPSILONS = ((r"backbone\..*", 0.0),)


def _pyramid(first):
    """Return the rules of a pyramid's convolutions from a stage on.

    A convolution is a block's layer 0; in older files, such as the published ones, the block.
    """
    return tuple(
        Rule(
            rf"backbone\.fpn\.{old}_blocks\.{block}(?:\.0)?",
            f"pyramid/stage{first + block}_{new}",
            "conv",
        )
        for block in range(4)
        for old, new in (("inner", "inner"), ("layer", "outer"))
    )


_RESNET_LAYERS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}

LAYOUTS = {
    # fcn.berkeleyvision.org; the alternatives are names of the older files (V1 layers).
    "caffe_fcn": Layout(
        r"score_fr|score-fr|score59",
        (
            _TRUNK,
            _FC,
            Rule(r"score_fr|score-fr|score59", "score_fr", "conv"),
            Rule(r"score[_-]pool([34])", r"score_stage\1", "conv"),
            Rule(r"upscore2|score2", "upscore_stage4", "upsample"),
            Rule(r"upscore_pool4|score4|upsample-fused-16", "upscore_stage3", "upsample"),
            Rule(r"upscore8?|upsample", "upscore", "upsample"),
        ),
    ),
    # The MATLAB release of Faster R-CNN, proposal_final and detection_final. Its channels are those
    # of py-faster-rcnn: background scores of all anchors, then their object scores; offsets four by
    # four; anchors ratio by ratio, then size by size.
    "matlab_faster_rcnn": Layout(
        r"proposal_cls_score",
        (
            _TRUNK,
            Rule(r"conv_proposal1", "rpn_conv", "conv"),
            Rule(r"proposal_(cls_score|bbox_pred)", r"rpn_\1", "conv"),
            _FC,
            Rule(r"cls_score", "cls_score", "dense"),
            Rule(r"bbox_pred", "bbox_pred", "offsets"),
        ),
    ),
    # py-R-FCN; Caffe's BatchNorm and Scale are layers of their own.
    "py_rfcn": Layout(
        r"rfcn_cls",
        (
            Rule(r"conv1", "backbone/conv1", "conv"),
            *(
                Rule(rf"res([2-5]){letter}_branch{old}", rf"backbone/stage\1_{block}/{new}", "conv")
                for block, letter in enumerate("abcdef", start=1)
                for old, new in _RESNET_LAYERS.items()
            ),
            Rule(r"rpn_conv/3x3", "rpn_conv", "conv"),
            Rule(r"rpn_cls_score|rpn_bbox_pred|rfcn_cls|rfcn_bbox", r"\g<0>", "conv"),
            Rule(r"conv_new_1", "conv_new", "conv"),
        ),
        joins=((r"(?:bn|scale)_conv1", "conv1"), (r"(?:bn|scale)(\d\w_branch\w+)", r"res\1")),
    ),
    "py_faster_rcnn": Layout(
        r"rpn_cls_score",
        (
            _TRUNK,
            Rule(r"rpn_conv1|rpn_conv/3x3", "rpn_conv", "conv"),
            Rule(r"rpn_cls_score|rpn_bbox_pred", r"\g<0>", "conv"),
            _FC,
            Rule(r"cls_score", "cls_score", "dense"),
            Rule(r"bbox_pred", "bbox_pred", "offsets"),
        ),
    ),
    # Classifiers of ImageNet: VGG-16, CaffeNet, ZF.
    "caffe_imagenet": Layout(r"fc8.*", (_TRUNK, _FC, Rule(r"fc8.*", None)), _CLASSIFIER),
    # torchvision's AlexNet is not here: it is another network than CaffeNet (64 first channels, no
    # groups, no normalisation).
    "torchvision_vgg16": Layout(
        r"features\.28",
        (
            Rule(r"features\.0", "backbone/conv1_1", "torchvision"),
            *(
                Rule(rf"features\.{place}", f"backbone/{name}", "conv")
                for place, name in _VGG16_STAGES.items()
            ),
            Rule(r"classifier\.0", "fc6", "patch"),
            Rule(r"classifier\.3", "fc7", "patch"),
            Rule(r"classifier\.6", None),
        ),
        _CLASSIFIER,
    ),
    # sacmehta/EdgeNets; the last PReLU of a block with a stride is in the file and never runs.
    "edgenets_espnetv2": Layout(
        r"bu_dec_l1\.projection_layer\.cbr\.0",
        (
            Rule(r"base_net\.level1\.conv", "level1", "conv"),
            *(
                Rule(_EESP_OLD[kind] + old, _EESP_NEW[kind] + new, "conv")
                for kind in (0, 1)
                for old, new in _EESP_LAYERS
            ),
            Rule(r"base_net\.level([2-4])_0\.eesp\.module_act", None),
            Rule(r"base_net\.level([2-4])_0\.inp_reinf\.([01])\.conv", r"level\1/image\2", "conv"),
            Rule(r"base_net\.level([2-4])_0", r"level\1/act"),
            Rule(r"bu_dec_l([1-4])\.projection_layer\.cbr\.0", r"decode\1/project", "conv"),
            Rule(r"bu_dec_l([1-4])\.stages\.([0-4])", r"decode\1/scale\2", "conv"),
            Rule(r"bu_dec_l([1-4])\.merge_layer\.0", r"decode\1/norm"),
            Rule(r"bu_dec_l([1-4])\.merge_layer\.2\.cbr\.0", r"decode\1/merge", "conv"),
            Rule(r"bu_dec_l([1-4])\.merge_layer\.3", r"decode\1/expand", "conv"),
            Rule(r"merge_enc_dec_l([2-4])\.wt_layer\.1", r"skip\1/weigh", "conv"),
            Rule(r"merge_enc_dec_l([2-4])\.expansion_layer\.cbr\.0", r"skip\1/expand", "conv"),
            Rule(r"bu_br_l([2-4])", r"join\1"),
        ),
        joins=(
            (r"(.*)\.br_after_cat\.(?:bn|act)", r"\1.br_after_cat"),
            (r"(base_net\.level[34]\.\d)\.module_act", r"\1.conv_1x1_exp.conv"),
            (r"(base_net\.level[2-4]_0\.eesp\.)module_act", r"\1module_act"),
            (r"(base_net\.level[2-4]_0)\.act", r"\1"),
            (r"(.*)\.(?:bn|act)", r"\1.conv"),
            (r"(.*)\.cbr\.[12]", r"\1.cbr.0"),
            (r"(.*)\.merge_layer\.0\.br\.[01]", r"\1.merge_layer.0"),
            (r"(.*)\.br\.br\.[01]", r"\1.merge_layer.3"),
            (r"(bu_br_l[2-4])\.[01]", r"\1"),
        ),
    ),
    "torchvision_deeplabv3": Layout(
        r"classifier\.0\.project\.0",
        (
            *_TORCHVISION_TRUNKS,
            Rule(r"classifier\.0\.convs\.([0-3])\.0", r"head/view\1", "conv"),
            Rule(r"classifier\.0\.convs\.4\.1", "head/whole", "conv"),
            Rule(r"classifier\.0\.project\.0", "head/project", "conv"),
            Rule(r"classifier\.1", "head/conv", "conv"),
            Rule(r"classifier\.4", "head/score", "conv"),
        ),
        joins=(
            *_TORCHVISION_JOINS,
            (r"(classifier\.0\.(?:convs\.[0-3]|project))\.1", r"\1.0"),
            (r"classifier\.0\.convs\.4\.2", "classifier.0.convs.4.1"),
            (r"classifier\.2", "classifier.1"),
        ),
        epsilons=_TORCHVISION_EPSILONS,
    ),
    "torchvision_lraspp": Layout(
        r"classifier\.cbr\.0",
        (
            *_TORCHVISION_TRUNKS,
            Rule(r"classifier\.cbr\.0", "head/conv", "conv"),
            Rule(r"classifier\.scale\.1", "head/weigh", "conv"),
            Rule(r"classifier\.(low|high)_classifier", r"head/score_\1", "conv"),
        ),
        joins=(*_TORCHVISION_JOINS, (r"classifier\.cbr\.1", "classifier.cbr.0")),
        epsilons=_TORCHVISION_EPSILONS,
    ),
    "torchvision_fcn": Layout(
        r"backbone\.layer4\.0\.conv1",
        (
            *_TORCHVISION_TRUNKS,
            Rule(r"classifier\.0", "head/conv", "conv"),
            Rule(r"classifier\.4", "head/score", "conv"),
        ),
        joins=(*_TORCHVISION_JOINS, (r"classifier\.1", "classifier.0")),
    ),
    "torchvision_fasterrcnn": Layout(
        r"roi_heads\.box_head\.fc6",
        (
            *_TORCHVISION_TRUNKS,
            *_pyramid(2),
            Rule(r"rpn\.head\.conv(?:\.0\.0)?", "rpn_conv", "conv"),
            Rule(r"rpn\.head\.cls_logits", "rpn_cls_score", "conv"),
            Rule(r"rpn\.head\.bbox_pred", "rpn_bbox_pred", "conv"),
            Rule(r"roi_heads\.box_head\.(fc[67])", r"\1", "patch"),
            Rule(r"roi_heads\.box_predictor\.(cls_score|bbox_pred)", r"\1", "dense"),
        ),
        joins=_TORCHVISION_JOINS,
        epsilons=_FROZEN_EPSILONS,
    ),
    "torchvision_retinanet": Layout(
        r"head\.classification_head\.cls_logits",
        (
            *_TORCHVISION_TRUNKS,
            *_pyramid(3),
            Rule(r"backbone\.fpn\.extra_blocks\.p6", "pyramid/extra0", "conv"),
            Rule(r"backbone\.fpn\.extra_blocks\.p7", "pyramid/extra1", "conv"),
            *(
                Rule(
                    rf"head\.{old}_head\.conv\.(?:{number}\.0|{2 * number})",
                    f"{new}_conv_{number}",
                    "conv",
                )
                for number in range(4)
                for old, new in (("classification", "cls"), ("regression", "box"))
            ),
            Rule(r"head\.classification_head\.cls_logits", "cls_logits", "conv"),
            Rule(r"head\.regression_head\.bbox_reg", "bbox_reg", "conv"),
        ),
        joins=_TORCHVISION_JOINS,
        epsilons=_FROZEN_EPSILONS,
    ),
}
