"""What pretraining says of a picture, and the sentences around it that the text tower reads."""

import random

TEMPLATES = (
    "an emoji of a {}",
    "a {} emoji",
    "a picture of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "{}",
    "a photo of a {}",
    "a sketch of a {}",
    "a cartoon {}",
    "a small image of a {}",
)
# Longer ones, so that the places of sixteen context tokens are trained.
CONTEXTS = (
    *TEMPLATES,
    "a very small and simple picture of a {}",
    "this is a drawing that shows a {}",
    "a clear and colorful icon that stands for a {}",
    "here is a small cartoon picture of one {} on a white background",
    "a flat black and white symbol of a {}",
    "in this little picture we can see a simple drawing of a {}",
    "an old emoji in many colors with a thin dark outline that somebody made to show a {}",
    "this is one of many small square pictures from a set of icons and it shows a {}",
    "a good simple image of the {}",
    "some art of {}",
)
