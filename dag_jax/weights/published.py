"""Published weights: their files, addresses, checksums and licences.

Where no checksum was ever published, `downloads` says so and records that of what came.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that a network's authors publish.

    Attributes:
      name: its name.
      addresses: where it lies, to be tried in turn: those that are known to be kept come first.
      checksum: "sha256:...", "sha1:..." or "md5:..." of its bytes, or as many of its first digits
        as are published; None where none is known.
      size: bytes, or None where nobody says.
      members: {end of the name of a file in this archive: its checksum, or None}; empty where the
        file is no archive.
    """

    name: str
    addresses: tuple[str, ...]
    checksum: str | None = None
    size: int | None = None
    members: dict[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weights of a network come from.

    Attributes:
      files: all that it is read from.
      page: where the authors say so.
      licence: of the weights, as the authors put it.
      command: how to train the network, for one that was never published: `files` are then of the
        ImageNet classifier that its training starts from. Empty for a published one.
    """

    files: tuple[Published, ...]
    page: str
    licence: str
    command: str = ""


_OPENCV = "https://dl.opencv.org/models"  # opencv_extra's testdata/dnn/download_models.py
_BERKELEY = "http://dl.caffe.berkeleyvision.org"  # each folder's caffemodel-url
_MIT = "MIT, the repository's; nothing more is stated of the weights"


def _fcn(name, checksum=None, mirrors=()):
    return Origin(
        (Published(name, (f"{_BERKELEY}/{name}", *mirrors), checksum),),
        "https://github.com/shelhamer/fcn.berkeleyvision.org",
        "unrestricted use (the BVLC model license); the repository's code BSD 2-Clause",
    )


def _py_faster_rcnn(member, checksum):
    name = "faster_rcnn_models.tgz"
    addresses = (
        f"{_OPENCV}/{name}",
        f"https://dl.dropboxusercontent.com/s/o6ii098bu51d139/{name}?dl=0",
        f"http://www.cs.berkeley.edu/~rbg/faster-rcnn-data/{name}",
    )
    archive = "sha1:51bca62727c3fe5d14b66e9331373c1e297df7d1"
    return Origin(
        (Published(name, addresses, archive, members={member: checksum}),),
        "https://github.com/rbgirshick/py-faster-rcnn",
        _MIT,
    )


def _matlab(name):
    addresses = (
        "https://onedrive.live.com/download?resid=D7AF52BADBA8A4BC!114&authkey=!AERHoxZ-iAx_j34"
        "&ithint=file%2czip",
        "https://www.dropbox.com/s/jswrnkaln47clg2/faster_rcnn_final_model.zip?dl=1",
    )
    members = {f"{name}/proposal_final": None, f"{name}/detection_final": None}
    return Origin(
        (Published("faster_rcnn_final_model.zip", addresses, members=members),),
        "https://github.com/ShaoqingRen/faster_rcnn",
        _MIT,
    )


_CAFFENET = Origin(
    (
        Published(
            "bvlc_reference_caffenet.caffemodel",
            (f"{_BERKELEY}/bvlc_reference_caffenet.caffemodel",),
            "sha256:472d4a06035497b180636d8a82667129960371375bd10fcb6df5c6c7631f25e0",
            243_862_418,
        ),
    ),
    "https://github.com/BVLC/caffe/tree/master/models/bvlc_reference_caffenet",
    "unrestricted use",
)
_VGG16 = Origin(
    (
        Published(
            "VGG_ILSVRC_16_layers.caffemodel",
            (
                "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
                "VGG_ILSVRC_16_layers.caffemodel",
                "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/caffe/models/vgg/"
                "VGG_ILSVRC_16_layers.caffemodel",
            ),
            "sha256:a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197",
            553_432_081,
        ),
    ),
    "http://www.robots.ox.ac.uk/~vgg/research/very_deep/",
    "CC BY 4.0",
)


def _raw(repository, commit, folder, name, checksum, size):
    address = f"https://raw.githubusercontent.com/{repository}/{commit}/{folder}/{name}"
    return Published(name, (address,), f"sha256:{checksum}", size)


def _edge_nets(kind, checksum, size):
    commit, folder = "2b232d3f7fb60658755dad1ebca0ffc895cc795e", "model/segmentation/model_zoo"
    name = f"espnetv2_s_{kind}.pth"
    return Origin(
        (_raw("sacmehta/EdgeNets", commit, f"{folder}/espnetv2", name, checksum, size),),
        "https://github.com/sacmehta/EdgeNets",
        "MIT",
    )


def _mobilenet_yolo(folder, name, checksum, size):
    repository = "dog-qiuqiu/MobileNet-Yolo"
    commit = "86c05bfc4e508d54a459a469faecc35a113454c1"
    return Origin(
        (_raw(repository, commit, folder, f"{name}.weights", checksum, size),),
        f"https://github.com/{repository}",
        "YOLO LICENSE, version 2, which says: public domain",
    )


def _torchvision(kind, digits, checksum=None, size=None):
    # The file's name ends with the first digits of its SHA-256.
    name = f"{kind}-{digits}.pth"
    address = f"https://download.pytorch.org/models/{name}"
    page = {"fasterrcnn": "faster_rcnn"}.get(family := kind.partition("_")[0], family)
    return Origin(
        (Published(name, (address,), f"sha256:{checksum or digits}", size),),
        f"https://docs.pytorch.org/vision/stable/models/{page}.html",
        "BSD 3-Clause, the repository's; its weights may be bound by the terms of what they were "
        "trained on, ImageNet and COCO",
    )


def _star(name, classifier):
    # Photographs come from ImageNet: no weight against background, no noise, unlike scenes.
    return dataclasses.replace(
        classifier,
        command=f"python -m experiments.train --network={name} --nominiature --nobatch_norm "
        "--dataset=voc --data_dir=VOCdevkit --canvas=512 --augment --noise=0 "
        "--background_weight=1 --steps=20000 --score_every=1000 --learning_rate=1e-3 "
        f"--initial=runs/weights/{name}_imagenet.safetensors",
    )


ORIGINS = {  # by the network's name in the zoo
    "fcn_alex": _fcn("fcn-alexnet-pascal.caffemodel"),
    "fcn_alex_star": _star("fcn_alex_star", _CAFFENET),
    "fcn_vgg": _fcn(
        "fcn8s-heavy-pascal.caffemodel",
        "sha1:c449ea74dd7d83751d1357d6a8c323fcf4038962",
        (
            "https://obs-model-ascend.obs.cn-east-2.myhuaweicloud.com/fcn-8s/"
            "fcn8s-heavy-pascal.caffemodel",
        ),
    ),
    "fcn_vgg_star": _star("fcn_vgg_star", _VGG16),
    "fr_zf_07": _py_faster_rcnn(
        "ZF_faster_rcnn_final.caffemodel", "sha1:7af886686f149622ed7a41c08b96743c9f4130f5"
    ),
    "fr_zf_0712": _matlab("faster_rcnn_VOC0712_ZF"),
    "fr_vgg_07": _py_faster_rcnn(
        "VGG16_faster_rcnn_final.caffemodel", "sha1:dd099979468aafba21f3952718a9ceffc7e57699"
    ),
    "fr_vgg_0712": _matlab("faster_rcnn_VOC0712_vgg_16layers"),
    "rfcn_resnet50": Origin(
        (
            Published(
                "rfcn_models.tar.gz",
                (
                    f"{_OPENCV}/rfcn_models.tar.gz",
                    "https://onedrive.live.com/download?cid=10B28C0E28BF7B83"
                    "&resid=10B28C0E28BF7B83%215317&authkey=%21AIeljruhoLuail8",
                    "https://www.dropbox.com/s/qvjinh7c6jpaovw/rfcn_models.tar.gz?dl=1",
                    "https://www.dropbox.com/s/lnz0r8uk9ax1mey/rfcn_models.tar.gz?dl=1",
                ),
                "sha1:bb3180da68b2b71494f8d3eb8f51b2d47467da3e",
                members={
                    "resnet50_rfcn_final.caffemodel": "sha1:"
                    "e00beca7af2790801efb1724d77bddba89e7081c"
                },
            ),
        ),
        "https://github.com/YuwenXiong/py-R-FCN",
        _MIT,
    ),
    "espnetv2_20_384": _edge_nets(
        "2.0_pascal_384x384",
        "bc479586b0ba9254e02589020346931a14d99028ad6bac4817198be6d9e719a6",
        3_376_138,
    ),
    "espnetv2_20_256": _edge_nets(
        "2.0_pascal_256x256",
        "e4883abccf8f042d422f2c66d69bd21b7af8d41680335e117eb2ee205f303d32",
        3_371_962,
    ),
    "espnetv2_15_384": _edge_nets(
        "1.5_pascal_384x384",
        "75f67549659cb5db6a8323a7595e3ce1bc3cbea7f95731105dec7a6d034b516b",
        2_068_823,
    ),
    "espnetv2_15_256": _edge_nets(
        "1.5_pascal_256x256",
        "0a297ec35a29168bef481b2e01a5735122eae5dd10f64c1a02d12f8ae141c727",
        2_068_823,
    ),
    "espnetv2_10_384": _edge_nets(
        "1.0_pascal_384x384",
        "7ce2df106b62661a4e8e30098398d6b96a2a946b9546d2287500379f984301a8",
        1_107_734,
    ),
    "espnetv2_10_256": _edge_nets(
        "1.0_pascal_256x256",
        "276d738e38733c136abf5ee9e8a801f5455b2751078c7c1d52a2b485460264be",
        1_107_734,
    ),
    "espnetv2_05_384": _edge_nets(
        "0.5_pascal_384x384",
        "3352b32b209e1e6492d1481734f5333876b28d8866f5c1702d01ec70255eb20c",
        469_363,
    ),
    "espnetv2_05_256": _edge_nets(
        "0.5_pascal_256x256",
        "9c7bebecd73c603a7eb2d8833eb2c54d0627e37e731548b7833291873e0a2e67",
        469_363,
    ),
    "espnetv2_20_city_1024x512": _edge_nets(
        "2.0_city_1024x512",
        "a72d59699801c7ce8e8b89a53af9097eaaa60dc12180ecde86fd700ba1222fe8",
        3_376_094,
    ),
    "espnetv2_20_city_512x256": _edge_nets(
        "2.0_city_512x256",
        "6b6f26b567c82bb4d6624387f24ed505613edafad19222e1707993fbe0d1d8f6",
        3_376_094,
    ),
    "espnetv2_15_city_1024x512": _edge_nets(
        "1.5_city_1024x512",
        "0dbbda9126583d62f73dfdc28a59a30ab4564094ee6d28428b897a4e36c466b4",
        2_068_779,
    ),
    "espnetv2_15_city_512x256": _edge_nets(
        "1.5_city_512x256",
        "711c76f0f814642953a68f485d64c5584772ca98db3d2d5f68d154749d75be2f",
        2_068_779,
    ),
    "espnetv2_10_city_1024x512": _edge_nets(
        "1.0_city_1024x512",
        "0918c833fed889e32901ce739b1784fdd2b79f95a9aea199a469ca3394dd7a14",
        1_107_690,
    ),
    "espnetv2_10_city_512x256": _edge_nets(
        "1.0_city_512x256",
        "002121eee40c31c8b74186153878452e02ef834d35f3e4a8801b3a84fdc3ec7d",
        1_107_690,
    ),
    "espnetv2_05_city_1024x512": _edge_nets(
        "0.5_city_1024x512",
        "9412a86a30f137540ef945d08da3cb7191448956c56c41a64210dab443a9f65f",
        469_319,
    ),
    "espnetv2_05_city_512x256": _edge_nets(
        "0.5_city_512x256",
        "63e398dec148f63c8ad117497864f99f021926b347fd4ee608036c36041e7f36",
        469_319,
    ),
    "yolov3_nano_voc": _mobilenet_yolo(
        "MobileNetV2-YOLOv3-Nano/VOC",
        "MobileNetV2-YOLOv3-Nano-voc",
        "3dc752a0dee830fb974bfd518d88df924d1eef03868e551786d606cd0f81c210",
        3_079_020,
    ),
    "yolo_fastest_voc": _mobilenet_yolo(
        "MobileNetV2-YOLO-Fastest/v1",
        "MobileNetV2-YOLO-Fastest-voc",
        "814fe11238cbeceefa77754b0be15d306e42fa7e774bd0efb755f9ffe06d8207",
        764_876,
    ),
    "yolov3_nano_coco": _mobilenet_yolo(
        "MobileNetV2-YOLOv3-Nano/COCO",
        "MobileNetV2-YOLOv3-Nano-coco",
        "60a6c2a86735fd39ff54d61f9a16f3ac3fe24a8b2e0d7740585bf2b54a5db81a",
        3_564_300,
    ),
    "lraspp_mobilenet_v3_large": _torchvision("lraspp_mobilenet_v3_large", "d234d4ea"),
    "deeplabv3_mobilenet_v3_large": _torchvision("deeplabv3_mobilenet_v3_large", "fc3c493d"),
    "fcn_resnet50": _torchvision(
        "fcn_resnet50_coco",
        "1167a1af",
        "1167a1affa42e1e62858f8d3fac12d109e0108327ffc91c5855a324b11683c36",
        141_567_418,
    ),
    "fcn_resnet101": _torchvision("fcn_resnet101_coco", "7ecb50ca"),
    "deeplabv3_resnet50": _torchvision("deeplabv3_resnet50_coco", "cd0a2569"),
    "deeplabv3_resnet101": _torchvision("deeplabv3_resnet101_coco", "586e9e4e"),
    "fasterrcnn_resnet50_fpn": _torchvision("fasterrcnn_resnet50_fpn_coco", "258fb6c6"),
    "retinanet_resnet50_fpn": _torchvision("retinanet_resnet50_fpn_coco", "eeacb38b"),
}
