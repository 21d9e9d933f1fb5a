//! Arguments of the kernels, field by field as in `kernels/args.cuh`, where they are explained.

#![allow(missing_docs)]

use half::f16;

use crate::backend::MOST_FACTORS;

/// An operand or a result of a kernel.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Value {
    pub data: *mut u8,
    pub len: u64,
    pub half: u32,
    pub lanes: u32,
}

impl Value {
    /// An operand that a kernel does without.
    pub const NONE: Self = Self { data: std::ptr::null_mut(), len: 0, half: 0, lanes: 1 };
}

macro_rules! arguments {
    ($($name:ident $size:literal { $($($field:ident),+: $type:ty;)* })*) => {
        $(
            #[derive(Debug, Clone, Copy)]
            #[repr(C)]
            pub struct $name { $($(pub $field: $type,)+)* }
        )*
        $(impl $name {
            /// No operands, no sizes.
            // SAFETY: numbers and pointers, for which zeros are 0 and null.
            pub const NONE: Self = unsafe { std::mem::zeroed() };
        })*
        // `kernels/args.cuh` asserts the same.
        $(const _: () = assert!(size_of::<$name>() == $size);)*
    };
}

arguments! {
    EltwiseArgs 144 { a, b, c, add, y: Value; bad: *mut u32; count, code: u32; s, scale: f32; }
    SplitArgs 176 { e: EltwiseArgs; other: Value; whole, unused: u32; }
    LaneArgs 184 { e: EltwiseArgs; factors: [f32; MOST_FACTORS]; n, unused: u32; }
    SampleArgs 216 { e: EltwiseArgs; first, second, third: Value; }
    ReduceArgs 72 { x, y: Value; bad: *mut u32; count, stored, own, unused: u32; }
    GatherArgs 96 {
        x, y: Value;
        rows, cols: *const u32;
        h, w, channels, from_w, grid_cols, first, count, fill: u32;
    }
    FillArgs 96 {
        range, y: Value;
        vector: *const f32;
        bad: *mut u32;
        values: [f32; 4];
        channels, own, upper, count: u32;
    }
    PerturbArgs 112 {
        x, range, y: Value;
        bad: *mut u32;
        seed: u64;
        draw, first, stored, own, count: u32;
        sigma: f32;
    }
    ConvArgs 224 {
        x, mul, add, y: Value;
        w: *const f16;
        bias: *const f32;
        bad: *mut u32;
        xh, xw, xc, yh, yw, yc, ph, pw: i32;
        origin_y, origin_x, step_y, step_x, stride_y, stride_x, first_y, first_x, tap_rows, tap_cols: i32;
        count, relu, divides, divisor: u32;
        eps, scale: f32;
        part_rows, part_cols: i32;
    }
    SampleConvArgs 272 {
        conv: ConvArgs;
        v: Value;
        kernel_cols, tap_y, tap_x, turn_y, turn_x: i32;
        unused: u32;
    }
    PoolArgs 152 {
        x, add, y, index: Value;
        bad: *mut u32;
        xh, xw, yh, yw, c, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x: i32;
        count: u32;
    }
    AverageArgs 160 {
        x, mul, add, y: Value;
        bad: *mut u32;
        xh, xw, yh, yw, c, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, adaptive: i32;
        count: u32;
    }
    FlattenArgs 96 { x, add, y: Value; bad: *mut u32; pixels, channels, count, unused: u32; }
    HeadArgs 96 {
        x, y: Value;
        classes: *mut u32;
        w: *const f16;
        bias: *const f32;
        bad: *mut u32;
        count, k, code: u32;
        scale: f32;
    }
    ChannelArgs 96 { x, weights, y: Value; bad: *mut u32; pixels, channels, count: u32; scale: f32; }
    UnfoldArgs 72 {
        image: *const u8;
        rows, cols: *const u8;
        levels: *const f32;
        y: *mut f16;
        image_w, sh, sw, channels, grid_cols, first, count, unused: u32;
    }
    ResizeArgs 56 {
        x: *const u8;
        y: *mut u8;
        reach: *const Reach;
        weights: *const i32;
        pitch: u64;
        format, h, w, unused: u32;
    }
    FoldArgs 104 {
        maps, p: *const f32;
        row_first: *const u32;
        rows: *const Cover;
        col_first: *const u32;
        cols: *const Cover;
        y: *mut f32;
        bad: *mut u32;
        h, w, map_h, map_w, grid_cols, patches, lanes, extra, weighting, unused: u32;
    }
    InterpolateArgs 120 {
        x, add, y: Value;
        bad: *mut u32;
        from_h, from_w, channels, first, slice, h, w, filter, count: u32;
        scale: f32;
    }
    MapArgs 48 {
        x: *const f32;
        y: *mut f32;
        h, w, vertical: u32;
        weights: [f32; 5];
    }
    OverlayArgs 88 {
        map, range: *const f32;
        photo: *const u8;
        rows, cols: *const Blend;
        palette: *const u8;
        y: *mut u8;
        pitch: u64;
        format, h, w, map_h, map_w, layer: u32;
    }
}

/// Source pixels of one result pixel of the antialiased resize, and where their weights begin.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub struct Reach {
    pub first: u32,
    pub count: u32,
    pub weights: u32,
}

/// A patch that covers a row or column of the canvas.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub struct Cover {
    pub patch: u32,
    pub lo: u32,
    pub hi: u32,
    pub t: f32,
}

/// Two neighbours along an axis of a map; `lo` of `u32::MAX` where nothing of the map is.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub struct Blend {
    pub lo: u32,
    pub hi: u32,
    pub t: f32,
}

const _: () = assert!(size_of::<Value>() == 24 && size_of::<Reach>() == 12);
const _: () = assert!(size_of::<Cover>() == 16 && size_of::<Blend>() == 12);
