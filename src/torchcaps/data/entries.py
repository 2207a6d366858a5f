"""All data sets, one entry each: facts for the listings, and where the files lie. Nothing here imports torch.

Terms of MNIST, SVHN, smallNORB and ImageNet were looked up on the sets' own pages in November 2026. The other licences,
the sizes of downloads and affNIST's ranges are as commonly quoted, and not checked: read a set's own page first.
"""

from __future__ import annotations

from dataclasses import replace

from torchcaps.config import ComposeConfig
from torchcaps.data.entry import Entry

DIGITS = tuple("0123456789")
FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(CIFAR100_NAMES.split())

SMALLNORB = ("animal", "human", "airplane", "truck", "car")

MNIST_FILES = tuple(  # torchvision reads them unpacked alone; a download unpacks what lies there packed
    (f"MNIST/raw/{name}",)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
)
FASHION_FILES = tuple(tuple(name.replace("MNIST/", "FashionMNIST/", 1) for name in group) for group in MNIST_FILES)
SMALLNORB_FILES = tuple(
    (f"smallNORB/smallnorb-{split}-{part}.mat", f"smallNORB/smallnorb-{split}-{part}.mat.gz")
    for split in ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing")
    for part in ("dat", "cat", "info")
)
OVERLAP = ComposeConfig(
    base="mnist",
    per_image=1000,
    objects=2,
    single=0,
    shift=4,
    size=0,
    overlay="clip",
    channels=0,
    epoch=60_000,
    held=10_000,
    seed=0,
)

STORED = (
    Entry(
        name="digits",
        about="handwritten digits of 13 writers (Alpaydin and Kaynak 1998), inside torchcaps",
        reader="torchcaps.data.readers:read_digits",
        classes=DIGITS,
        channels=1,
        image_size=(8, 8),
        train=1437,
        test=360,
        licence="CC BY 4.0",
    ),
    Entry(
        name="mnist",
        about="handwritten digits (LeCun, Cortes and Burges 1998)",
        reader="torchcaps.data.readers:read_mnist",
        classes=DIGITS,
        channels=1,
        image_size=(28, 28),
        train=60_000,
        test=10_000,
        licence="CC BY-SA 3.0",
        megabytes=12,
        files=MNIST_FILES,
    ),
    Entry(
        name="fashion-mnist",
        about="articles of clothing (Xiao, Rasul and Vollgraf 2017)",
        reader="torchcaps.data.readers:read_mnist",
        classes=FASHION_MNIST,
        channels=1,
        image_size=(28, 28),
        train=60_000,
        test=10_000,
        licence="MIT",
        megabytes=31,
        files=FASHION_FILES,
    ),
    Entry(
        name="cifar10",
        about="small photographs of animals and vehicles (Krizhevsky 2009)",
        reader="torchcaps.data.readers:read_cifar",
        classes=CIFAR10,
        channels=3,
        image_size=(32, 32),
        train=50_000,
        test=10_000,
        licence="none stated",
        megabytes=170,
        files=(("cifar10.npz", "cifar-10-batches-py"),),
    ),
    Entry(
        name="cifar100",
        about="small photographs, the 100 fine classes (Krizhevsky 2009)",
        reader="torchcaps.data.readers:read_cifar",
        classes=CIFAR100,
        channels=3,
        image_size=(32, 32),
        train=50_000,
        test=10_000,
        licence="none stated",
        megabytes=169,
        files=(("cifar100.npz", "cifar-100-python"),),
    ),
    Entry(
        name="svhn",
        about="house numbers in street views, cropped digits, without the extra images (Netzer et al. 2011)",
        reader="torchcaps.data.readers:read_svhn",
        classes=DIGITS,
        channels=3,
        image_size=(32, 32),
        train=73_257,
        test=26_032,
        licence="non-commercial use only",
        megabytes=246,
        files=(("SVHN/train_32x32.mat",), ("SVHN/test_32x32.mat",)),
    ),
)

OVERLAPPED = (
    Entry(
        name="multimnist",
        about="two overlapped digits of different classes, up to 4 pixels off (Sabour et al. 2017); 60 M / 10 M images",
        reader="torchcaps.data.composed:read_overlap",
        classes=DIGITS,
        channels=1,
        image_size=(36, 36),
        train=60_000_000,
        test=10_000_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=OVERLAP,
    ),
    Entry(
        name="multimnist-fm",
        about="multimnist with 100 images for each digit, as in FM agreement's section 4.3.2",
        reader="torchcaps.data.composed:read_overlap",
        classes=DIGITS,
        channels=1,
        image_size=(36, 36),
        train=6_000_000,
        test=1_000_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=replace(OVERLAP, per_image=100),
    ),
    Entry(
        name="multimnist-xnodr",
        about="multimnist with 4 images for each digit and three channels, as in XnODR's section 4.1, without its leak",
        reader="torchcaps.data.composed:read_overlap",
        classes=DIGITS,
        channels=3,
        image_size=(36, 36),
        train=240_000,
        test=40_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=replace(OVERLAP, per_image=4, channels=3, epoch=0, held=0),
    ),
    Entry(
        name="diverse-multimnist",
        about="one digit with probability 1/6, else two overlapped (Tsai et al. 2020, appendix B.2)",
        reader="torchcaps.data.composed:read_overlap",
        classes=DIGITS,
        channels=3,
        image_size=(36, 36),
        train=60_000_000,
        test=10_000_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=replace(OVERLAP, single=6, channels=3),
    ),
)

VIEWPOINTS = (
    Entry(
        name="expanded-mnist",
        about="digits on 40x40 pixels at every shift within 6 pixels (Sabour et al. 2017, section 5.2)",
        reader="torchcaps.data.composed:read_shifted",
        classes=DIGITS,
        channels=1,
        image_size=(40, 40),
        train=10_140_000,
        test=1_690_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=replace(OVERLAP, per_image=169, objects=1, shift=6),
    ),
    Entry(
        name="affine-digits",
        about="digits turned, sheared, stretched and moved within affNIST's ranges; made here, to stand in for affnist",
        reader="torchcaps.data.composed:read_affine",
        classes=DIGITS,
        channels=1,
        image_size=(40, 40),
        train=1_920_000,
        test=320_000,
        licence="CC BY-SA 3.0",
        files=MNIST_FILES,
        compose=replace(OVERLAP, per_image=32, objects=1, shift=0),
    ),
    Entry(
        name="affnist",
        about="MNIST under small affine transforms (Tieleman 2013): the published 32x/transformed batches",
        reader="torchcaps.data.affnist:read_affnist",
        test_reader="torchcaps.data.affnist:read_affnist_test",
        classes=DIGITS,
        channels=1,
        image_size=(40, 40),
        train=1_920_000,
        test=320_000,
        licence="none stated",
        page="https://www.cs.toronto.edu/~tijmen/affNIST/",
        files=tuple((f"affNIST/{split}_batches/1.mat",) for split in ("training", "validation", "test")),
    ),
    Entry(
        name="smallnorb",
        about="toys from 9 elevations and 18 azimuths in 6 lightings, each camera an image (LeCun et al. 2004)",
        reader="torchcaps.data.smallnorb:read_smallnorb",
        classes=SMALLNORB,
        channels=1,
        image_size=(96, 96),
        train=48_600,
        test=48_600,
        licence="research only, not to be sold",
        page="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        files=SMALLNORB_FILES,
    ),
    Entry(
        name="smallnorb-azimuth",
        about="smallnorb: train at azimuths 300 to 40, test at 60 to 280 degrees (Hinton et al. 2018)",
        reader="torchcaps.data.smallnorb:read_smallnorb",
        classes=SMALLNORB,
        channels=1,
        image_size=(96, 96),
        train=16_200,
        test=32_400,
        licence="research only, not to be sold",
        page="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        files=SMALLNORB_FILES,
    ),
    Entry(
        name="smallnorb-azimuth-seen",
        about="smallnorb-azimuth, but the test images of the azimuths that are trained on",
        reader="torchcaps.data.smallnorb:read_smallnorb",
        classes=SMALLNORB,
        channels=1,
        image_size=(96, 96),
        train=16_200,
        test=16_200,
        licence="research only, not to be sold",
        page="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        files=SMALLNORB_FILES,
    ),
    Entry(
        name="smallnorb-elevation",
        about="smallnorb: train at the elevations 30 to 40, test at 45 to 70 degrees (Hinton et al. 2018)",
        reader="torchcaps.data.smallnorb:read_smallnorb",
        classes=SMALLNORB,
        channels=1,
        image_size=(96, 96),
        train=16_200,
        test=32_400,
        licence="research only, not to be sold",
        page="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        files=SMALLNORB_FILES,
    ),
    Entry(
        name="smallnorb-elevation-seen",
        about="smallnorb-elevation, but the test images of the elevations that are trained on",
        reader="torchcaps.data.smallnorb:read_smallnorb",
        classes=SMALLNORB,
        channels=1,
        image_size=(96, 96),
        train=16_200,
        test=16_200,
        licence="research only, not to be sold",
        page="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        files=SMALLNORB_FILES,
    ),
    Entry(
        name="h-imagenet",
        about="hard classes of ImageNet (EncapNet, appendix C): ImageNet/train, val, classes.txt and, if any, boxes",
        reader="torchcaps.data.imagenet:read_h_imagenet",
        licence="non-commercial research and education only",
        page="https://image-net.org/download.php",
        files=(("ImageNet/train",), ("ImageNet/val",), ("ImageNet/classes.txt",)),
    ),
)

OWN = (
    Entry(
        name="npz:PATH",
        about="your own arrays: x_train, y_train, x_test, y_test in one .npz, images NHW, NHWC or NCHW",
        reader="torchcaps.data.arrays:read_npz",
    ),
    Entry(
        name="folder:PATH",
        about="your own image files: PATH/train/CLASS/*, PATH/test/CLASS/*, or PATH/CLASS/* with a fixed test split",
        reader="torchcaps.data.folder:read_folder",
    ),
    Entry(
        name="list:FILE",
        about="your own image files as a CSV file names them: a path and its label, or several labels, a line",
        reader="torchcaps.data.listed:read_list",
    ),
)

ENTRIES = (*STORED, *OVERLAPPED, *VIEWPOINTS, *OWN)
