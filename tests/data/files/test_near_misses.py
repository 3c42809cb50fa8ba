"""Files that nearly are what is expected: they are read as they are meant, or refused in a
sentence.
"""

import json
import os
import unicodedata
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from toco.__main__ import main
from toco.data.check import check_splits
from toco.data.files.label_table import read_table
from toco.data.files.layout import Layout, read_class_names, read_names
from toco.data.folder import Config, open_split
from toco.data.voc import Config as VocConfig
from toco.data.voc import open_split as open_voc_split

SIZE = (40, 48)
CLASSES = ("cat", "dog", "cow")
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
        path
    )


def make_root(
    root: Path, names: tuple[str, ...] = ("a", "b", "c", "d"), val: tuple[str, ...] = ("d",)
) -> Path:
    for seed, name in enumerate(names):
        save_image(root / f"{name}.png", seed)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels.csv").write_text(
        "name,class_ids\n" + "".join(f"{n},{i % 2 + 1}\n" for i, n in enumerate(names))
    )
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names if name not in val))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in val))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def config(root: Path, **changes: object) -> Config:
    return Config.model_validate({"root": root, **changes})


def check(root: Path, **changes: object) -> tuple[list[str], list[str]]:
    """Reasons of faults and of notes."""
    settings = config(root, **changes)
    report = check_splits(open_split(settings, "train"), open_split(settings, "val"))
    return [fault.reason for fault in report.faults], [note.reason for note in report.notes]


def classes(root: Path, content: bytes) -> tuple[str, ...]:
    (root / "classes.txt").write_bytes(content)
    return read_class_names(Layout(root, root, None, root, root))


class TestClassNames:
    @pytest.mark.parametrize(
        "first", ["background", "Background", "_background_", "__background__", "bg"]
    )
    @pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_a_background_in_the_first_line_is_left_out(
        self, tmp_path: Path, first: str, encode: str, end: str
    ) -> None:
        assert classes(tmp_path, end.join((first, "cat ", "dög", "")).encode(encode)) == (
            "cat",
            "dög",
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"cat\nbackground\n", "'background' is the background, which has the id 0"),
            (b"cat\nvoid\n", "'void' reads as pixels without ground truth"),
            (b"__ignore__\n_background_\ncat\n", "'__ignore__' reads as pixels"),
            (b"0 background\n1 cat\n2 dog\n", "its lines are numbered, as in '0 background'"),
            (b"1: cat\n2: dog\n", "its lines are numbered"),
            (b"cat,dog\n", "'cat,dog' has several names"),
            (b"cat\tfelis\ndog\tcanis\n", "has several names"),
            (b'[\n"cat",\n"dog"\n]\n', "write plain text"),
            (b"# my classes\ncat\n", "write plain text"),
            (b"cat\ndog\ncat\n", "different class names"),
            (f"{NFC}\n{NFD}\n".encode(), "different class names"),
            (b"\n\n", "1 to 254 different class names, but it has 0"),
            (b"background\n", "but it has 0"),
            ("chât\n".encode("latin-1"), "not text in UTF-8"),
        ],
    )
    def test_what_is_no_list_of_classes_is_refused(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as error:
            classes(tmp_path, content)
        assert "classes.txt" in str(error.value)

    def test_names_that_only_look_numbered_or_listed_stay(self, tmp_path: Path) -> None:
        names = ("3 wheeler", "bus, double", "3 wheeler, old", "voids")
        assert classes(tmp_path, "\n".join(names).encode()) == names

    def test_blank_lines_and_names_of_one_spelling_are_notes(self, root: Path) -> None:
        (root / "classes.txt").write_text("\ncat\nCat\n\n")
        faults, notes = check(root)
        assert faults == []
        assert "line 1 is blank and was left out; classes are numbered without a gap." in notes
        assert "the classes 'cat', 'Cat' differ in upper and lower case alone." in notes


class TestTables:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (
                "name,class_ids\na,1,2\n",
                r"row 2 has 3 fields, and the first line 2: \['a', '1', '2'\]; separate ids by s",
            ),
            ("name,class_ids\na\n", "row 2 has 1 fields"),
            ("name,class_ids\n,1\n", "row 2 has no name"),
            ("a,1\nb,2\n", r"found \['a', '1'\]; write name,class_ids above the first row"),
            ("name;class_ids\na;1\n", "separate columns by commas"),
            ("name\tclass_ids\na\t1\n", "separate columns by commas"),
            ("name,class_ids,name\na,1,b\n", "expected the columns name and class_ids"),
            ("", r"found \[\]"),
            (
                "name,class_ids\na,1.0\n",
                "expected class ids separated by spaces for 'a', found '1.0'",
            ),
            ("name,class_ids\na,1;2\n", "found '1;2'"),
            ("name,class_ids\na,[1]\n", r"found '\[1\]'"),
            ("name,class_ids\na,dog\n", "found 'dog'; write its id, 2"),
            ("name,class_ids\na,dog cow\n", "write ids in place of names, here 2 3"),
            (
                "name,class_ids\na,0 1 0\nb,1 0 0\n",
                r"'a' has \[0, 1, 0\], which reads as a vector of 0 and 1",
            ),
            ("name,class_ids\na,1 1 1\n", "reads as a vector of 0 and 1"),
            (
                "name,class_ids\na,0\nb,2\n",
                r"ids begin at 1 \('cat'\), and these seem to begin at 0",
            ),
            ("name,class_ids\na,0 3\n", "0 is the background"),
            ("name,class_ids\na,4\n", r"class ids \[4\], expected 1\.\.3\.$"),
            ("name,class_ids\na,1\na,1\n", "'a' appears twice"),
            (f"name,class_ids\n{NFC},1\n{NFD},1\n", "differ only in their Unicode form"),
            ('name,class_ids\n"a,1\nb,2\n', "it is no CSV"),
        ],
    )
    def test_csv(self, tmp_path: Path, rows: str, message: str) -> None:
        (tmp_path / "labels.csv").write_text(rows)
        with pytest.raises(ValueError, match=message) as error:
            read_table(tmp_path / "labels.csv", CLASSES)
        assert str(error.value).startswith(f"{tmp_path / 'labels.csv'}")

    @pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_csv_as_spreadsheets_write_it(self, tmp_path: Path, encode: str, end: str) -> None:
        rows = (
            " name ,class_ids,split",
            ' "" , ',
            "a , 1 2 ,train",
            '"b, c",3,val,',
            "d,,val",
            ",,,",
        )
        (tmp_path / "labels.csv").write_bytes(end.join((rows[0], *rows[2:])).encode(encode))
        assert read_table(tmp_path / "labels.csv", CLASSES) == {"a": (1, 2), "b, c": (3,), "d": ()}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"a": [0, 1, 0]}', "vector of 0 and 1"),
            ('{"a": ["dog"]}', "write ids in place of names, here 2"),
            ('{"a": "dog"}', "write its id, 2"),
            ('{"a": [1.0]}', r"expected a list of class ids for 'a', found \[1\.0\]"),
            ('{"a": 1}', "expected a list of class ids for 'a', found 1"),
            ('{"a": {"ids": [1]}}', r"found \{'ids': \[1\]\}"),
            ('[{"name": "a", "ids": [1]}]', "expected one object"),
            ('{"a": [0], "b": [1]}', "seem to begin at 0"),
            ("[" * 100_000, "nested too deeply"),
            ('{"a": [1' + "0" * 5000 + "]}", "is not JSON"),
        ],
    )
    def test_json(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            read_table(tmp_path / "labels.json", CLASSES)
        assert str(error.value).startswith(f"{tmp_path / 'labels.json'}")

    def test_json_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        for encode in ("utf-8-sig", "utf-16"):
            (tmp_path / "labels.json").write_bytes(json.dumps({"a": [2, 2, 3]}).encode(encode))
            assert read_table(tmp_path / "labels.json", CLASSES) == {"a": (2, 3)}

    def test_one_class_has_one_reading(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("name,class_ids\na,1\nb,\n")
        assert read_table(tmp_path / "labels.csv", ("coin",)) == {"a": (1,), "b": ()}


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape: tuple[int, ...], descr: str, content: bytes = b"") -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + content


class TestArrays:
    @pytest.mark.parametrize(
        ("members", "message"),
        [
            (
                {"names": npy((1,), "<U1", b"a\0\0\0"), "class_labels": npy((10**6, 10**6), "|u1")},
                "of shape",
            ),
            (
                {"names": npy((10**12,), "<U4"), "class_labels": npy((10**12, 3), "|u1")},
                "more than 1073741824",
            ),
            (
                {"names": npy((1,), "<U1", b"a\0\0\0"), "class_labels": npy((1, 3), "|u1", b"\1")},
                "labels",
            ),
            (
                {"names": npy((1,), "|S1", b"a"), "class_labels": npy((1, 3), "|u1", bytes(3))},
                "names as text",
            ),
            (
                {
                    "names": npy((1, 1), "<U1", b"a\0\0\0"),
                    "class_labels": npy((1, 3), "|u1", bytes(3)),
                },
                "one dimension",
            ),
            (
                {
                    "names": npy((1,), "<U1", b"a\0\0\0"),
                    "class_labels": npy((1, 3), "<U1", bytes(12)),
                },
                "0 and 1",
            ),
            ({"names": b"no array", "class_labels": b""}, "magic"),
            (
                {"names": npy((1,), "<U1", b"a\0\0\0")},
                "expected the arrays names and class_labels, found names.npy",
            ),
        ],
    )
    def test_heads_are_read_before_memory_is_taken(
        self, tmp_path: Path, members: dict[str, bytes], message: str
    ) -> None:
        npz(tmp_path / "labels.npz", **members)
        with pytest.raises(ValueError, match=message) as error:
            read_table(tmp_path / "labels.npz", CLASSES)
        assert str(error.value).startswith(f"{tmp_path / 'labels.npz'}: ")

    def test_what_inflates_beyond_its_head_is_not_inflated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A member of 64 MB whose head says 3 bytes: no more is read than a block of the inflating
        reader.
        """
        content = npy((1, 3), "|u1", b"\0\1\0" + bytes(2**26))
        npz(tmp_path / "labels.npz", names=npy((1,), "<U1", b"a\0\0\0"), class_labels=content)
        inflated = 0
        read = zipfile.ZipExtFile._read1

        def count(self: zipfile.ZipExtFile, number: int) -> bytes:
            nonlocal inflated
            data = read(self, number)
            inflated += len(data)
            return data

        monkeypatch.setattr(zipfile.ZipExtFile, "_read1", count)
        assert read_table(tmp_path / "labels.npz", CLASSES) == {"a": (2,)}
        assert inflated < 2**20

    def test_any_damage_is_a_sentence(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.npz"
        np.savez_compressed(
            path,
            names=np.array(["a", "b"]),
            class_labels=np.array([[1, 0, 0], [0, 1, 1]], np.uint8),
        )
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        sentences = []
        for _ in range(200):
            content = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            path.write_bytes(content)
            try:
                read_table(path, CLASSES)
            except ValueError as error:
                sentences.append(str(error))
        assert len(sentences) > 100
        assert all(text.startswith(f"{path}: cannot be read as labels: ") for text in sentences)


class TestAnnotations:
    @pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "gbk"])
    def test_encodings(self, root: Path, encode: str) -> None:
        name = {"gbk": "猫", "latin-1": "chât"}.get(encode, NFD)
        (root / "classes.txt").write_text(f"{unicodedata.normalize('NFC', name)}\ndog\n")
        declared = encode.removesuffix("-sig")
        content = f"<annotation><object><name> {name} </name></object></annotation>"
        xml = f'<?xml version="1.0" encoding="{declared}"?>{content}'
        (root / "Annotations").mkdir()
        (root / "Annotations/a.xml").write_bytes(xml.encode(encode))
        assert open_voc(root).class_labels(0).tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'.encode("utf-16"), "has a document type"),
            (
                b'<?xml version="1.0" encoding="klingon"?><annotation/>',
                "encoding 'klingon', which is unknown",
            ),
            (b'<?xml version="1.0" encoding="zip"?><annotation/>', "which is unknown"),
            (b"<annotation>\xff</annotation>", "not text in UTF-8"),
            (b"\0" * 9, "cannot be read as XML"),
            (b"", "cannot be read as XML"),
            (
                b'<annotations><image><box label="cat"/></image></annotations>',
                "but it is <annotations>",
            ),
        ],
    )
    def test_faults(self, root: Path, content: bytes, message: str) -> None:
        (root / "Annotations").mkdir()
        (root / "Annotations/a.xml").write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            open_voc(root).class_labels(0)
        assert "a.xml" in str(error.value)


def open_voc(root: Path):
    """The same images in VOC's folders."""
    (root / "JPEGImages").mkdir()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "a.png").rename(root / "JPEGImages/a.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    return open_voc_split(VocConfig(root=root, train_list="train", labels="xml"), "train")


class TestLists:
    @pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_encodings_and_line_ends(self, root: Path, encode: str, end: str) -> None:
        (root / "train.txt").write_bytes(end.join(("a ", "", "b")).encode(encode))
        assert open_split(config(root), "train").names == ("a", "b")

    def test_a_form_feed_ends_no_line(self, root: Path) -> None:
        (root / "train.txt").write_text("a\fb\n")
        with pytest.raises(ValueError, match="1 of 1 images are missing"):
            open_split(config(root), "train")

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (
                "a.png\n",
                r"1 of 1 images are missing: 'a.png'\. Names are without suffix: write 'a'",
            ),
            ("north\\a\n", "has a backslash; separate folders by /"),
            ("..\\a\n", "leads out"),
            ("A\n", r"There is 'a.png': write the name as the file has it\."),
            ("south/a\n", "There is no folder"),
            (f"{NFC}\n{NFD}\n", "differ only in their Unicode form"),
        ],
    )
    def test_names_that_nearly_are_those_of_images(
        self, root: Path, lines: str, message: str
    ) -> None:
        (root / "train.txt").write_text(lines)
        with pytest.raises(ValueError, match=message):
            open_split(config(root), "train")

    def test_an_image_of_another_format_is_to_be_converted(self, root: Path) -> None:
        Image.open(root / "a.png").save(root / "x.gif")
        (root / "train.txt").write_text("x\n")
        message = (
            r"There is 'x\.gif', which is not read: images end in \.jpg, .*\.tiff; "
            r"convert or rename it\."
        )
        with pytest.raises(ValueError, match=message):
            open_split(config(root), "train")

    def test_labels_that_nearly_name_an_image(self, root: Path) -> None:
        for spelt in ("{}.png", "{}.JPG"):
            (root / "labels.csv").write_text(
                "name,class_ids\n" + "".join(f"{spelt.format(n)},1\n" for n in "abcd")
            )
            with pytest.raises(
                ValueError, match=rf"no label of 'a'\. It names '{spelt.format('a')}'"
            ):
                open_split(config(root), "train")


class TestUnicodeForms:
    @pytest.mark.parametrize(("in_list", "on_disk"), [(NFC, NFD), (NFD, NFC)])
    def test_a_list_in_another_form_than_the_files(
        self, tmp_path: Path, in_list: str, on_disk: str
    ) -> None:
        root = make_root(tmp_path / "root", (f"{on_disk}/a", "b", "c"), ("c",))
        (root / f"masks/{on_disk}").mkdir(parents=True)
        for name in (f"{on_disk}/a", "b", "c"):
            Image.fromarray(np.full(SIZE, 1, np.uint8)).save(root / f"masks/{name}.png")
        (root / "train.txt").write_text(f"{in_list}/a\nb\n")
        dataset = open_split(config(root, masks="masks"), "train")
        assert dataset.names == (f"{in_list}/a", "b")
        assert dataset.class_labels(0).tolist() == [1, 0]
        np.testing.assert_array_equal(
            dataset.image(0), np.asarray(Image.open(root / f"{on_disk}/a.png"))
        )
        assert dataset.mask(0).min() == 1
        (note,) = dataset.notes
        assert (
            note.reason
            == f"1 name in another Unicode form than the file, and matched: {in_list + '/a'!r}."
        )

    def test_two_files_of_one_name(self, tmp_path: Path) -> None:
        root = make_root(tmp_path / "root", (NFC, NFD, "c"), ("c",))
        (root / "labels.csv").write_text(f"name,class_ids\n{NFC},1\nc,1\n")
        (root / "train.txt").write_text(f"{NFC}\n")
        with pytest.raises(ValueError, match=r"several images \(caf\\xe9.png, cafe\\u0301.png\)"):
            open_split(config(root), "train")
        for name in ("train", "val"):
            (root / f"{name}.txt").unlink()
        with pytest.raises(ValueError, match="differ only in their Unicode form"):
            open_split(config(root), "train")

    def test_a_class_folder_in_another_form(self, tmp_path: Path) -> None:
        for seed in range(12):
            save_image(tmp_path / f"{NFD}/{seed}.png", seed)
        (tmp_path / "classes.txt").write_text(f"{NFC}\n")
        assert open_split(config(tmp_path, labels="folders"), "train").class_labels(0).tolist() == [
            1
        ]

    def test_an_image_in_both_lists_by_two_forms(self, tmp_path: Path) -> None:
        root = make_root(tmp_path / "root", (NFC, "b"), ("b",))
        (root / "val.txt").write_text(f"b\n{NFD}\n")
        faults, _ = check(root)
        assert faults[0].startswith(f"1 of 2 validation images also in training: {NFD!r}.")


class TestWhatIsLeftOut:
    def test_every_kind_is_counted_once(self, root: Path, tmp_path: Path) -> None:
        save_image(root / "e.png", 4)
        save_image(root / ".f.png")
        (root / "g.webp").write_bytes(b"")
        (root / "h.webp").write_bytes(b"")
        (root / "notes").write_bytes(b"")
        (root / "gone.png").symlink_to(tmp_path / "nothing.png")
        (root / "loop").symlink_to(root)
        (root / "turns").symlink_to(root / "turns")
        (root / "labels.csv").open("a").write("stale,1\n")
        (root / "masks").mkdir()
        for name in ("a", "b", "c", "d", "e", "old"):
            Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / f"masks/{name}.png")
        (root / "masks/a.jpg").write_bytes(b"")
        faults, notes = check(root, masks="masks")
        assert faults == []
        assert notes == [
            "labels name 'cat' (1) in 2 images with a mask, and no mask has a pixel of it; 255 is "
            "void and no class.",
            "labels name 'dog' (2) in 2 images with a mask, and no mask has a pixel of it; 255 is "
            "void and no class.",
            f"left out: {root / 'gone.png'} is a link to nothing.",
            f"left out: {root / 'loop'} is a link to a folder that holds the link.",
            f"left out: {root / 'turns'} is a link to nothing.",
            "3 files left out, since images are .jpg, .jpeg, .png, .tif, .tiff: no suffix 1, .webp "
            "2.",
            "hidden files and folders left out, 1: '.f.png'.",
            "1 image in neither split: 'e'.",
            "1 label of images that do not exist: 'stale'.",
            "1 mask of images that do not exist: 'old'.",
            "1 file left out, since masks are .png files: .jpg 1.",
        ]

    def test_a_link_to_another_image_is_not_left_out_where_a_list_names_it(
        self, root: Path
    ) -> None:
        (root / "d.png").unlink()
        for name in ("d", "e"):
            (root / f"{name}.png").symlink_to("a.png")
        (root / "labels.csv").open("a").write("e,1\n")
        faults, notes = check(root)
        assert faults == []
        assert [note for note in notes if "left out" in note or "do not exist" in note] == [
            "1 image left out, links to other images: 'e'."
        ]

    def test_a_linked_class_folder_is_followed(self, tmp_path: Path) -> None:
        for seed in range(20):
            save_image(tmp_path / f"root/cat/{seed}.png", seed)
            save_image(tmp_path / f"elsewhere/dog/{seed}.png", 20 + seed)
        (tmp_path / "elsewhere/dog/up").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root/dog").symlink_to(tmp_path / "elsewhere/dog")
        (tmp_path / "root/twin").symlink_to(tmp_path / "elsewhere/dog")
        (tmp_path / "root/classes.txt").write_text("cat\ndog\n")
        splits = [
            open_split(config(tmp_path / "root", labels="folders"), split)
            for split in ("train", "val")
        ]
        assert sorted(splits[0].names + splits[1].names) == sorted(
            f"{c}/{i}" for c in ("cat", "dog") for i in range(20)
        )
        assert [note.reason for note in splits[0].notes] == [
            f"left out: {tmp_path / 'root/dog/up/dog'} is a link to a folder that holds the link.",
            f"left out: {tmp_path / 'root/twin/up/dog'} is a link to a folder that holds the link.",
            "20 images left out, links to other images: 'twin/0', 'twin/1', 'twin/10', 'twin/11', "
            "'twin/12' and 15 more.",
        ]

    def test_a_folder_that_cannot_be_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("train", "val"):
            (root / f"{name}.txt").unlink()

        (root / "closed").mkdir()
        scandir = os.scandir

        def refuse(path: str) -> object:
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(ValueError, match="closed: the folder cannot be opened"):
            open_split(config(root), "train")

    def test_a_class_without_a_training_image(self, root: Path) -> None:
        (root / "classes.txt").write_text("cat\ndog\ncow\n")
        _, notes = check(root)
        assert notes == ["no training image shows the class 'cow'."]

    def test_orientation_is_noted_and_explains_a_turned_mask(self, tmp_path: Path) -> None:
        root = make_root(tmp_path / "root")
        exif = Image.Exif()
        exif[0x0112] = 6
        for name in "abcd":
            (root / f"{name}.png").unlink()
            Image.new("RGB", SIZE[::-1], "red").save(root / f"{name}.jpg", exif=exif)
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(np.ones(SIZE[::-1], np.uint8)).save(root / f"masks/{name}.png")
        (fault,), notes = check(root, masks="masks")
        assert "has an EXIF orientation" in fault
        assert ["has an EXIF orientation" in note for note in notes[:3]] == [
            True
        ] * 3  # training reads no mask
        assert "4 images with an EXIF orientation" in notes[3]

    def test_the_same_pixels_under_two_names(self, root: Path) -> None:
        Image.open(root / "a.png").save(root / "d.tif")
        (root / "d.png").unlink()
        Image.open(root / "b.png").save(root / "c.png")
        _, notes = check(root)
        assert notes == [
            "images with the same pixels under several names in training and in validation: 'a = "
            "d'.",
            "images with the same pixels under several names within a split: 'b = c'.",
        ]

    def test_binary_masks_of_0_and_255(self, root: Path) -> None:
        (root / "classes.txt").write_text("coin\n")
        (root / "labels.csv").write_text("name,class_ids\na,1\nb,1\nc,1\nd,1\n")
        (root / "masks").mkdir()
        mask = np.zeros(SIZE, np.uint8)
        mask[5:20, 5:20] = 255
        for name in "abcd":
            Image.fromarray(mask).save(root / f"masks/{name}.png")
        faults, notes = check(root, masks="masks")
        assert faults == []
        assert notes == [
            "labels name 'coin' (1) in 4 images with a mask, and no mask has a pixel of it; 255 is "
            "void and no class. "
            "All masks hold 0 and 255 alone: draw objects with the ids of their classes."
        ]
        with pytest.raises(ValueError, match="Its mask may have 255, which is void and no class"):
            open_split(config(root, masks="masks", labels="masks"), "train").class_labels(0)


@pytest.mark.parametrize("masks", ["masks", "{}/masks", "../root/masks", "./masks/", "../link"])
def test_masks_are_no_images_however_their_folder_is_named(root: Path, masks: str) -> None:
    (root / "masks").mkdir()
    (root.parent / "link").symlink_to(root / "masks")
    for name in "abcd":
        Image.fromarray(np.ones(SIZE, np.uint8)).save(root / f"masks/{name}.png")
    for name in ("train", "val"):
        (root / f"{name}.txt").unlink()
    settings = config(root, masks=masks.format(root), val_share=0.5)
    names = open_split(settings, "train").names + open_split(settings, "val").names
    assert sorted(names) == list("abcd")


def test_an_image_with_two_files_is_refused(root: Path) -> None:
    save_image(root / "a.jpg")
    with pytest.raises(
        ValueError, match=r"'a' is the name of several images \(a.jpg, a.png\); keep one"
    ):
        open_split(config(root), "train")


def test_a_broken_image_is_reported_once(root: Path) -> None:
    (root / "masks").mkdir()
    for name in "abcd":
        Image.fromarray(np.ones(SIZE, np.uint8)).save(root / f"masks/{name}.png")
    (root / "a.png").write_bytes(b"")
    faults, _ = check(root, masks="masks")
    assert faults == ["cannot be read as JPEG or PNG or TIFF, whatever its name says."]


def test_names_are_printed_without_control_characters(root: Path) -> None:
    name = "\x1b]0;title\x07\x1b[31mred"
    (root / f"{name}.png").write_bytes(b"broken")
    with (root / "train.txt").open("a") as file:
        file.write(f"{name}\n")
    with (root / "labels.csv").open("a") as file:
        file.write(f"{name},1\n")
    result = CliRunner().invoke(main, ["data", "check-set", "folder", "--set", f"root={root}"])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert r"\x1b]0;title\x07\x1b[31mred.png: cannot be read" in result.stdout


def test_reading_names_needs_a_list(root: Path) -> None:
    (root / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="the list cannot be read: Is a directory"):
        read_names(Layout(root, root, None, root, root), "folder")


def test_the_orientation_of_a_tiff_is_followed_and_not_noted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    (root / "a.png").unlink()
    Image.fromarray(stored).save(root / "a.tif", exif=exif)
    dataset = open_split(config(root), "train")
    assert dataset.size(0) == SIZE[::-1]
    np.testing.assert_array_equal(dataset.image(0), np.rot90(stored, -1))
    assert check(root)[1] == []


@pytest.mark.parametrize("labels", ["masks", "labels.csv"])
def test_a_wrong_mask_is_a_fault_where_a_training_reads_it(root: Path, labels: str) -> None:
    """A training on labels of a file never opens the masks of its images."""
    (root / "masks").mkdir()
    for name in "abcd":
        Image.fromarray(np.ones(SIZE, np.uint8)).save(root / f"masks/{name}.png")
    (root / "labels.csv").write_text("name,class_ids\na,1\nb,1\nc,1\nd,1\n")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(root / "masks/a.png")
    faults, notes = check(root, masks="masks", labels=labels)
    (found,) = faults if labels == "masks" else [note for note in notes if "also has" in note]
    assert "but it also has 9" in found
    assert len(faults) == (labels == "masks")
    train = open_split(config(root, masks="masks", labels=labels), "train")
    if labels == "masks":
        with pytest.raises(ValueError, match="also has 9"):
            train.class_labels(0)
    else:
        assert train.class_labels(0).tolist() == [1, 0]
        train.manifest_digest()
