//! What a file is that cannot be decoded, and whether a JPEG is whole.

/// Beginnings of formats that people hand in and `ucag` does not read: offset, bytes, name.
const UNREAD: &[(usize, &[u8], &str)] = &[
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG text"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\x01\0", "an icon (ICO)"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska video"),
];

/// Words for the contents of a file that is no readable picture.
pub(super) fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "an empty file".into();
    }
    if let Some(brand) = bytes.get(4..12).and_then(|b| b.strip_prefix(b"ftyp")) {
        return match brand {
            b"avif" | b"avis" => "AVIF, which is not supported".into(),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                "HEIC, which is not supported (convert it to JPEG first)".into()
            }
            other => format!("a video or another file of brand `{}`", other.escape_ascii()),
        };
    }
    match UNREAD.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic))) {
        Some((_, _, name)) => format!("{name}, which is not supported"),
        None => format!("an unknown format (it begins with `{}`)", bytes[..bytes.len().min(8)].escape_ascii()),
    }
}

/// Whether a JPEG's image data ends with the end marker. The decoder fills the missing part of a truncated file with
/// grey and says nothing.
pub(super) fn jpeg_ends(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut at = 2;
    loop {
        // The next marker: 0xff and a byte that is neither stuffing, fill nor a restart.
        let is_marker = |p: &[u8]| p[0] == 0xff && !matches!(p[1], 0 | 0x01 | 0xff | 0xd0..=0xd8);
        let Some(next) = bytes.get(at..).and_then(|rest| rest.windows(2).position(is_marker)) else { return false };
        at += next;
        let marker = bytes[at + 1];
        if marker == END {
            return true;
        }
        let Some(length) = bytes.get(at + 2..at + 4) else { return false };
        at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
    }
}
