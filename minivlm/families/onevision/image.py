"""LLaVA-OneVision's pictures: one in a prompt becomes Tiles as LLaVA-NeXT's does; several become a square each."""

from dataclasses import dataclass, replace

from minivlm.families.llava_next_image import LlavaNextProcessor
from minivlm.io.image import ImageProcessor


@dataclass(frozen=True)
class OneVisionProcessor(LlavaNextProcessor):
    """How the pictures of a prompt become Tiles or, of several, plain pixels."""

    def pixels_of(self, images):
        """Tiles of one picture; the (1, 3, S, S) pixels of each of several, laid on a square of the mean colour."""
        if len(images) == 1:
            return super().pixels_of(images)
        on_square = replace(self, mode="pad")
        return [ImageProcessor.pixels(on_square, image) for image in images]

    def boxes_of(self, images):
        """What each of these pixels show: see `box`."""
        if len(images) == 1:
            return super().boxes_of(images)
        on_square = replace(self, mode="pad")
        return [ImageProcessor.box(on_square, *image.size) for image in images]
