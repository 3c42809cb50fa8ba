"""Check a VOC-shaped folder, even if faults in its lists make it impossible to open."""

from __future__ import annotations

from collections.abc import Iterable

from toco.data import voc
from toco.data.check.findings import Report
from toco.data.check.splits import SMALL_SIDE_PX, Check
from toco.data.files.file_dataset import FileDataset
from toco.data.files.labels import label_source
from toco.data.files.layout import Layout, check_names, count, list_lines, read_class_names
from toco.data.files.splits import overlap


def check_folder(
    config: voc.Config, *, small_side_px: int = SMALL_SIDE_PX, progress: bool = False
) -> Report:
    """Decode every image and mask of both lists of a VOC-shaped folder and report all faults.

    :func:`check_splits` needs splits that open. This also checks folders with faults in the lists,
    the classes or the labels.

    Args:
        config: Configuration of the folder.
        small_side_px: Images with a smaller side are noted.
        progress: Whether to show a progress bar.
    """
    root, report = config.root, Report()
    layout = Layout.of_voc(root, config.mask_folder)

    # Classes and labels.
    class_names: tuple[str, ...] = ()
    class_file = root / (config.classes or "classes.txt")
    try:
        class_names = read_class_names(
            layout, None if config.classes is None else class_file, report.notes
        )
    except ValueError as error:
        report.fault(error, (class_file,))
    has_labels = bool(class_names)
    try:
        if class_names:
            label_source(layout, config.labels, class_names, config.max_pixels)
    except ValueError as error:
        report.fault(error, (root / config.labels,))
        has_labels = False

    # Lists.
    train_names, val_names = (
        _names_of_list(layout, name, report) for name in (config.train_list, config.val_list)
    )
    report.overlap(
        layout.list_path(config.val_list), overlap(train_names, val_names), config.allow_overlap
    )

    # Images and masks.
    def open_list(names: Iterable[str], list_name: str, allow_empty_labels: bool) -> FileDataset:
        return FileDataset(
            layout,
            _with_one_image(layout, names, list_name, report),
            class_names,
            # Needs no file of labels; without labels, none are read.
            config.labels if has_labels else "masks",
            config,
            allow_empty_labels=allow_empty_labels,
            max_pixels=config.max_pixels,
            check_labels=False,
        )

    report.num_images = {config.train_list: len(train_names), config.val_list: len(val_names)}
    check = Check(
        train=open_list(train_names, config.train_list, config.allow_empty_labels),
        val=open_list(val_names, config.val_list, True),
        report=report,
        # Without classes the id of every object would be out of range: one fault is enough,
        # instead of one per image.
        has_masks=bool(class_names),
        has_labels=has_labels,
        masks_are_labels=config.labels == "masks",
        small_side_px=small_side_px,
    )
    return check.run(progress)


def _names_of_list(layout: Layout, list_name: str, report: Report) -> tuple[str, ...]:
    """Return the usable names of a list, without duplicates; report its other lines."""
    path = layout.list_path(list_name)
    try:
        lines = list_lines(path)
    except ValueError as error:
        report.fault(error, (path,))
        return ()
    if b"\r" in path.read_bytes():
        report.note(path, "has line ends of Windows, which are dropped.")
    blank = [str(number) for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        report.note(
            path, f"{count(len(blank), 'blank line')} left out, the first is line {blank[0]}."
        )
    names, problems = check_names(lines)
    if not names and not problems:
        report.fault("is empty.", (path,))
    for problem in problems:
        report.fault(f"{problem}.", (path,))
    return names


def _with_one_image(
    layout: Layout, names: Iterable[str], list_name: str, report: Report
) -> tuple[str, ...]:
    """Return the names of a list that belong to exactly one image file."""
    source = layout.list_path(list_name).name
    sound = []
    for name in names:
        paths = layout.image_paths(name)
        if len(paths) == 1:
            sound.append(name)
        else:
            files = ", ".join(path.name for path in paths) or "none"
            report.fault(
                f"expected one image, as {source} names it, found {files}.", (layout.images / name,)
            )
    return tuple(sound)
