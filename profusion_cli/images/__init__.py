"""Pictures as files and pixels. Only Pillow and NumPy are used here, and no model is known.

- `opening`: picture files of any origin, and words for what is wrong with them
- `photos`: one upright RGB picture from any file, and its central square
- `records`: how a picture was made, inside its file
- `marks`: what it says to programs about who has made it
- `credentials`: the same, signed
- `formats`: what is written, by the ending of its name
- `sheets`: pictures side by side
- `lettering`: the text between them
"""

from profusion_cli.images.formats import ANIMATIONS, PICTURES, PNG, encode_animation, encode_picture, is_animation
from profusion_cli.images.photos import Photo, crop_square, decode_photo
from profusion_cli.images.records import encode_png, parameters_text, public_id, read_record
from profusion_cli.images.sheets import contact_sheet, enlarged, numbered_sheet, strip

__all__ = [
    "ANIMATIONS",
    "PICTURES",
    "PNG",
    "Photo",
    "contact_sheet",
    "crop_square",
    "decode_photo",
    "encode_animation",
    "encode_picture",
    "encode_png",
    "enlarged",
    "is_animation",
    "numbered_sheet",
    "parameters_text",
    "public_id",
    "read_record",
    "strip",
]
