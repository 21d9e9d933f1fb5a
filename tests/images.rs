//! Photos of all kinds, good and bad, through `ucag::io`.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, Frame, ImageEncoder, ImageFormat, RgbImage, RgbaImage};
use ucag::io::{self, Photo};
use ucag::{Map, Working, methods::Level};

const FORMATS: &[ImageFormat] = &[
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
    ImageFormat::Pnm,
    ImageFormat::WebP,
    ImageFormat::Gif,
];

/// A photo in which every pixel is another colour.
fn ramp(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 20) as u8, (y * 20) as u8, 90]))
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Pixels as the engine gets them.
fn pixels(photo: &Photo) -> Vec<u8> {
    Working::new(photo.size(), ucag::Fit::None, 1).unwrap().pixels(&photo.frame())
}

fn open(bytes: &[u8]) -> Photo {
    Photo::from_bytes("photo", bytes).unwrap()
}

#[track_caller]
fn refused(bytes: &[u8], words: &str) {
    let error = Photo::from_bytes("some.file", bytes).unwrap_err().to_string();
    assert!(error.contains("some.file") && error.contains(words), "expected `{words}` in: {error}");
}

#[test]
fn lossless_formats_give_the_same_pixels() {
    let image = ramp(12, 7);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm, ImageFormat::WebP] {
        let photo = open(&encoded(image.clone(), format));
        assert_eq!(photo.size(), (7, 12), "{format:?}");
        assert_eq!(&pixels(&photo), image.as_raw(), "{format:?}");
    }
    assert_eq!(open(&encoded(image.clone(), ImageFormat::Gif)).size(), (7, 12));
    assert_eq!(open(&encoded(image, ImageFormat::Jpeg)).size(), (7, 12));
}

#[test]
fn grey_sixteen_bit_and_alpha_become_rgb() {
    let grey = DynamicImage::from(ramp(5, 5)).into_luma8();
    let expected: Vec<u8> = grey.as_raw().iter().flat_map(|v| [*v; 3]).collect();
    assert_eq!(pixels(&open(&encoded(grey, ImageFormat::Png))), expected);

    let deep = DynamicImage::from(ramp(5, 5)).into_rgb16();
    assert_eq!(&pixels(&open(&encoded(deep, ImageFormat::Png))), ramp(5, 5).as_raw());

    // Clear pixels keep their colour: alpha is dropped, not blended.
    let clear = RgbaImage::from_fn(3, 2, |_, _| image::Rgba([200, 10, 30, 0]));
    assert_eq!(pixels(&open(&encoded(clear, ImageFormat::Png))), [200, 10, 30].repeat(6));
}

/// An EXIF segment that says how the photo is to be turned, put into a JPEG.
fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn exif_turns_the_photo() {
    let plain = encoded(ramp(12, 6), ImageFormat::Jpeg);
    let upright = pixels(&open(&plain));
    let quarter = open(&turned(&plain, 6));
    assert_eq!(quarter.size(), (12, 6));
    // Turned clockwise, the lower left corner comes first.
    assert_eq!(pixels(&quarter)[..3], upright[5 * 12 * 3..][..3]);
    let half = pixels(&open(&turned(&plain, 3)));
    assert!(half.chunks(3).eq(upright.chunks(3).rev()));
    assert_eq!(pixels(&open(&turned(&plain, 99))), upright, "senseless entries are passed over");
}

/// A CMYK JPEG of 8×8 pixels of one colour, written by hand: four components, all coefficients but the first zero.
fn cmyk(inks: [u8; 4]) -> Vec<u8> {
    let mut bits = String::new();
    for ink in inks {
        let dc = 8 * (i32::from(ink) - 128);
        let size = 32 - dc.unsigned_abs().leading_zeros();
        bits += &format!("{size:04b}");
        if size > 0 {
            let value = if dc < 0 { dc + (1 << size) - 1 } else { dc };
            bits += &format!("{value:0width$b}", width = size as usize);
        }
        bits += "0"; // end of block
    }
    while !bits.len().is_multiple_of(8) {
        bits += "1";
    }
    let data: Vec<u8> = (0..bits.len() / 8).map(|i| u8::from_str_radix(&bits[i * 8..][..8], 2).unwrap()).collect();
    let data: Vec<u8> = data.iter().flat_map(|b| if *b == 0xff { vec![0xff, 0] } else { vec![*b] }).collect();
    let mut jpeg = vec![0xff, 0xd8];
    let mut segment = |marker: u8, body: &[u8]| {
        jpeg.extend([0xff, marker]);
        jpeg.extend((body.len() as u16 + 2).to_be_bytes());
        jpeg.extend(body);
    };
    segment(0xee, b"Adobe\0\x64\0\0\0\0\0");
    segment(0xdb, &[&[0u8][..], &[1; 64]].concat());
    segment(0xc0, &[8, 0, 8, 0, 8, 4, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0]);
    let sizes: Vec<u8> = (0..12).collect();
    segment(0xc4, &[&[0, 0, 0, 0, 12][..], &[0; 12], &sizes].concat());
    segment(0xc4, &[&[0x10, 1][..], &[0; 15], &[0]].concat());
    segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]);
    jpeg.extend(data);
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

#[test]
fn cmyk_becomes_rgb() {
    // Adobe's files hold the inks inverted: 255 is none.
    let near = |found: &[u8], expected: [u8; 3]| found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 3);
    for (inks, rgb) in
        [([255, 0, 0, 255], [255, 0, 0]), ([0, 255, 255, 255], [0, 255, 255]), ([255, 255, 255, 0], [0; 3])]
    {
        let found = pixels(&open(&cmyk(inks)));
        assert!(near(&found[..3], rgb), "{inks:?}: expected {rgb:?}, found {:?}", &found[..3]);
    }
}

#[test]
fn truncated_files_are_refused() {
    for format in FORMATS {
        let whole = encoded(ramp(40, 40), *format);
        for part in [whole.len() / 2, whole.len() * 3 / 4] {
            let found = Photo::from_bytes("half", &whole[..part]);
            assert!(found.is_err(), "{format:?} cut to {part} of {} bytes", whole.len());
        }
    }
}

#[test]
fn no_damage_makes_a_decoder_panic() {
    let mut state = 1u32;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for format in FORMATS {
        let whole = encoded(ramp(9, 9), *format);
        for part in 0..whole.len() {
            let _ = Photo::from_bytes("part", &whole[..part]);
        }
        for _ in 0..2000 {
            let mut damaged = whole.clone();
            for _ in 0..=draw(3) {
                damaged[draw(whole.len())] = draw(256) as u8;
            }
            let _ = Photo::from_bytes("damaged", &damaged);
        }
    }
}

#[test]
fn unread_formats_are_named() {
    refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC");
    refused(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF");
    refused(b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL");
    refused(b"\0\0\0\x20ftypisom\0\0\x02\0", "video");
    refused(b"%PDF-1.7\n", "PDF");
    refused(b"hello world", "hello");
    refused(b"", "empty file");
    refused(&[0xff, 0xd8], "JPEG");
}

#[test]
fn animations_are_refused() {
    let frame = || Frame::new(RgbaImage::new(6, 6));
    let mut gif = vec![];
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
    encoder.encode_frames([frame(), frame()]).unwrap();
    drop(encoder);
    refused(&gif, "animation");

    // An animation control chunk between header and data makes an APNG.
    let png = encoded(ramp(6, 6), ImageFormat::Png);
    let control = b"\0\0\0\x08acTL\0\0\0\x02\0\0\0\0\xf3\x8d\x93\x70";
    refused(&[&png[..33], control, &png[33..]].concat(), "animation");

    // A WebP header whose animation flag is set, and one empty frame.
    let body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0\x05\0\0\x05\0\0ANIM\x06\0\0\0\0\0\0\0\0\0";
    let frame = [&b"ANMF\x18\0\0\0"[..], &[0; 6], &[5, 0, 0, 5, 0, 0, 100, 0, 0, 0], b"VP8L\0\0\0\0"].concat();
    let length = (body.len() + frame.len()) as u32;
    refused(&[&b"RIFF"[..], &length.to_le_bytes(), body, &frame].concat(), "animation");
}

#[test]
fn absurd_sizes_are_refused() {
    refused(b"P6\n0 0\n255\n", "PNM");
    refused(b"P6\n70000 2\n255\n", "70000");
    refused(b"P6\n32000 32000\n255\n", "MiB");
    let one = open(&encoded(ramp(1, 1), ImageFormat::Png));
    assert_eq!(one.size(), (1, 1));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| io::read(path).unwrap_err().to_string();
    assert!(error(folder.path()).contains("directory"));
    assert!(error(&folder.path().join("none.jpg")).contains("none.jpg"));
    // No permission: root may read everything, but a file has no children.
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(error(&file.join("photo.jpg")).contains("photo.jpg"));
}

#[test]
fn npy_is_as_numpy_writes_it() {
    let bytes = io::npy(&Map::new(2, 3, vec![0.0, 1.0, -1.5, 2.0, 3.0, 4.0]));
    let header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    assert_eq!(&bytes[..header.len()], header);
    assert_eq!(bytes.len(), 128 + 6 * 4);
    assert_eq!(bytes[127], b'\n');
    assert_eq!(bytes[128 + 8..][..4], (-1.5f32).to_le_bytes());
}

#[test]
fn png16_keeps_signs() {
    let grey = |level| {
        let bytes = io::png16(&Map::new(1, 3, vec![-2.0, 0.0, 1.0]), level).unwrap();
        image::load_from_memory(&bytes).unwrap().into_luma16().into_raw()
    };
    assert_eq!(grey(Level::Input), [1, 32768, 49152]);
    assert_eq!(grey(Level::Layer), [0, 0, 65535]);
}

#[test]
fn deep_grey_becomes_rgb() {
    let mut bytes = vec![];
    let deep: Vec<u8> = [0u16, 0x8080, 0xffff, 0x0101].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&deep, 2, 2, ExtendedColorType::L16).unwrap();
    assert_eq!(pixels(&open(&bytes)), [[0; 3], [128; 3], [255; 3], [1; 3]].concat());
}
