"""What a picture says to programs about who has made it: IPTC's digital source type, as XMP.

https://cv.iptc.org/newscodes/digitalsourcetype/ and https://www.iptc.org/std/photometadata/specification/
"""

from __future__ import annotations

from typing import Any

from PIL.PngImagePlugin import PngInfo

from profusion_cli import __version__

_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED = f"{_TYPES}trainedAlgorithmicMedia"
"""All of it is drawn by a trained model."""
COMPOSITE = f"{_TYPES}compositeWithTrainedAlgorithmicMedia"
"""A part of it is."""
SOURCE_TYPE = "digital_source_type"
"""The key of a picture's record that says so."""
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="profusion {version}"
    Iptc4xmpExt:DigitalSourceType="{source_type}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_XMP_KEY = "XML:com.adobe.xmp"
_GIF_SCREEN = 13
"""Bytes of a GIF's header and screen descriptor."""
_GIF_EXTENSION = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER = bytes([0x01, *range(0xFF, -1, -1), 0x00])
"""What ends the packet for programs that read it as sub-blocks (XMP specification, part 3, section 1.1.2)."""


def made_by(source_type: str, wanted: bool) -> dict[str, str]:
    """What a record says of who has made its picture, unless that is not wanted."""
    return {SOURCE_TYPE: source_type} if wanted else {}


def packet_of(record: dict[str, Any]) -> str | None:
    """The XMP packet of a picture with this record; None: it is not marked."""
    source_type = record.get(SOURCE_TYPE)
    return None if source_type is None else _PACKET.format(version=__version__, source_type=source_type)


def png_info(record: dict[str, Any]) -> PngInfo:
    """Of a PNG file with this record: its mark, if it has one."""
    info = PngInfo()
    if (packet := packet_of(record)) is not None:
        info.add_itxt(_XMP_KEY, packet)
    return info


def mark_gif(data: bytes, record: dict[str, Any]) -> bytes:
    """A GIF file with the XMP packet of its record in front of its pictures."""
    packet = packet_of(record)
    if packet is None:
        return data
    flags = data[_GIF_SCREEN - 3]
    behind = _GIF_SCREEN + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)  # of the table of colours
    return data[:behind] + _GIF_EXTENSION + packet.encode() + _GIF_TRAILER + data[behind:]
