//! Frame after frame, the heap stays as it is.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use ucag::{Device, Explainer, Fit, Frame, Grid, Maps, Target};

/// The system's allocator, with a count of the bytes in use.
struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Frames that may allocate: a GPU makes its plan with the first, records it with the second, replays it from then on.
const EARLY: u64 = 3;

/// Explains `frames` pictures. Returns the bytes in use after the early ones, and the most after any later one.
fn run(device: Device, model: &str, method: &str, size: usize, maps: Maps, frames: u64) -> (isize, isize) {
    let grid = Grid { n: 2, rho: Some(0.7), alpha: 1.0, ..Grid::default() };
    let builder = Explainer::with_network(common::tiny(model)).method(method).maps(maps).grid(grid);
    let mut explainer = builder.fit(Fit::None).device(device).threads(2).build().expect("an explainer");
    let mut pixels = common::picture(size, size, 0);
    let (mut early, mut most) = (0, 0);
    for i in 0..frames {
        pixels[i as usize % 7] ^= 1;
        let frame = Frame::rgb(&pixels, size, size).expect("a frame");
        drop(explainer.explain(&frame, &Target::Top(2)).expect("an explanation"));
        let now = IN_USE.load(Ordering::Relaxed);
        match i {
            i if i + 1 < EARLY => {}
            i if i + 1 == EARLY => (early, most) = (now, now),
            _ => most = most.max(now),
        }
    }
    (early, most)
}

fn assert_flat(device: Device, model: &str, method: &str, size: usize, maps: Maps, frames: u64) {
    let (early, most) = run(device, model, method, size, maps, frames);
    let grown = most - early;
    println!("{method} on {model}: {early} bytes after {EARLY} frames, {grown} more at most up to frame {frames}");
    assert_eq!(grown, 0, "{method} on {model} on {device}: bytes more than after {EARLY} of {frames} frames");
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn the_heap_is_flat() {
    for (model, method, size, maps, frames) in [
        ("resnet18", "grad-cam", 32, Maps::Plain, 1000),
        ("resnet18", "lrp-epsilon-plus", 32, Maps::Both, 100),
        ("vgg11", "grad-cam", 46, Maps::Both, 100),
        ("vgg11_bn", "lrp-epsilon-plus", 46, Maps::Ucag, 60),
    ] {
        assert_flat(Device::Cpu, model, method, size, maps, frames);
    }
    #[cfg(feature = "cuda")]
    if common::cuda::device().is_some() {
        assert_flat(Device::Cuda(0), "resnet18", "grad-cam", 32, Maps::Plain, 1000);
    }
}
