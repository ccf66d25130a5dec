//! The samples as one picture: a grid, scaled up, on grey lines.

use anyhow::{Context, Result, ensure};
use image::{GrayImage, Luma};
use std::path::Path;

/// Screen pixels of a sample's pixel.
const SCALE: u32 = 3;
/// Grey pixels between samples, before scaling.
const GAP: u32 = 2;
const GREY: u8 = 64;

/// A grid of `columns` columns of square images of `size` pixels a side, values -1 (black) to 1 (white).
pub(crate) fn grid(images: &[f32], size: usize, columns: usize) -> GrayImage {
    let count = images.len() / (size * size);
    let (columns, rows) = (columns.min(count).max(1), count.div_ceil(columns.max(1)));
    let (side, cell) = (size as u32, size as u32 + GAP);
    let extent = |n: usize| (n as u32 * cell + GAP) * SCALE;
    GrayImage::from_fn(extent(columns), extent(rows), |x, y| {
        let inside = |at: u32| {
            let at = (at / SCALE).checked_sub(GAP)?;
            (at % cell < side).then_some(((at / cell) as usize, (at % cell) as usize))
        };
        let pixel = inside(x).zip(inside(y)).and_then(|((column, j), (row, i))| {
            images.get(((row * columns + column) * size + i) * size + j).filter(|_| column < columns)
        });
        Luma([pixel.map_or(GREY, |&v| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8)])
    })
}

/// Says now that `path` cannot be written, as far as that can be known before there is something to write.
pub(crate) fn writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "cannot write {}: there is no folder {}", path.display(), folder.display());
    ensure!(!path.is_dir(), "cannot write {}: it is a folder; give --out a file name", path.display());
    Ok(())
}

/// Writes it as PNG.
pub(crate) fn save(picture: &GrayImage, path: &Path) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).with_context(what)?;
    std::fs::write(path, bytes.into_inner()).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_land_where_they_belong() {
        // Three images of 2x2 in two columns: the last place of the grid stays grey.
        let images = [-1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0];
        let picture = grid(&images, 2, 2);
        assert_eq!(picture.dimensions(), (30, 30));
        let at = |x: u32, y: u32| picture.get_pixel(x * SCALE + 1, y * SCALE + 1).0[0];
        assert_eq!([at(2, 2), at(3, 2), at(2, 3), at(3, 3)], [0, 255, 0, 0]);
        assert_eq!([at(6, 2), at(7, 3)], [128, 255]);
        assert_eq!([at(2, 6), at(3, 7)], [255, 255]);
        assert_eq!([at(6, 6), at(7, 7), at(0, 0), at(4, 2), at(9, 9)], [GREY; 5]);
    }
}
