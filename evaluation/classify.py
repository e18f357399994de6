"""Classify picture files of the user's own."""

from pathlib import Path

import torch

from evaluation import attention
from evaluation.trained import TrainedModel
from training.data.image_folder import read_image
from training.errors import UsageError
from training.files import create_folder

NUM_GUESSES = 5  # classes that are named for each picture


def classify_files(trained: TrainedModel, files: tuple[str, ...], folder: Path) -> None:
    """Print the likeliest classes of each picture file, of any size and mode, and draw them with the attention maps."""
    images = torch.stack([read_image(file, trained.img_size) for file in files])
    if folder.resolve() in {Path(file).resolve().parent for file in files}:
        raise UsageError(f"the figures would be written among the pictures in {folder}: choose another --output-dir")
    create_folder(folder)
    from evaluation.attention_plots import plot_classified  # its import takes seconds: after what can fail

    names, has_attention = trained.class_names, attention.has_attention(trained.model)
    drawn: set[str] = set()
    for i, file in enumerate(files):
        top = trained(images[i : i + 1])[0].softmax(dim=0).topk(min(NUM_GUESSES, len(names)))
        guesses = [(names[c], p) for p, c in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
        shown_as = file.encode(errors="surrogateescape").decode(errors="replace")  # a name need not be UTF-8
        print(f"{shown_as}: {', '.join(f'{name} {100 * probability:.1f}%' for name, probability in guesses)}")
        maps = None
        if has_attention:
            rollout, heads = attention.attention_maps(trained.model, trained.normalize(images[i : i + 1]))
            maps = rollout[0], heads[0]
        stem = Path(shown_as).stem[:40]  # a file name may have 255 bytes, and a letter may take four
        stem = next(name for name in (stem, *(f"{stem}_{n}" for n in range(2, i + 3))) if name not in drawn)
        drawn.add(stem)
        plot_classified(images[i], guesses, maps, folder / f"{stem}.png", Path(shown_as).name)
    shown = "with attention maps" if has_attention else f"no attention maps: {trained.saved['model_name']} has none"
    print(f"Figures: {folder} ({shown})")
