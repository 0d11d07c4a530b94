//! The shapes that are measured.

use bn_core::{Error, Layout, Shape};

/// A shape of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As in names of benchmarks and records.
    pub name: &'static str,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Positions, dimension by dimension; none for a dense layer's output.
    pub spatial: &'static [usize],
    /// Whether it counts in the geometric means: the ten shapes of ResNet-50.
    pub big: bool,
}

const fn case(name: &'static str, batch: usize, channels: usize, spatial: &'static [usize], big: bool) -> Case {
    Case { name, batch, channels, spatial, big }
}

/// All of them.
pub const CASES: [Case; 18] = [
    case("1x64x112x112", 1, 64, &[112, 112], true),
    case("32x64x112x112", 32, 64, &[112, 112], true),
    case("32x64x56x56", 32, 64, &[56, 56], true),
    case("32x256x56x56", 32, 256, &[56, 56], true),
    case("32x128x28x28", 32, 128, &[28, 28], true),
    case("32x512x28x28", 32, 512, &[28, 28], true),
    case("32x256x14x14", 32, 256, &[14, 14], true),
    case("32x1024x14x14", 32, 1024, &[14, 14], true),
    case("32x512x7x7", 32, 512, &[7, 7], true),
    case("32x2048x7x7", 32, 2048, &[7, 7], true),
    case("32x3x224x224", 32, 3, &[224, 224], false),
    case("16x64x16000", 16, 64, &[16_000], false),
    case("8x24x75x75", 8, 24, &[75, 75], false),
    case("1x8x96x96", 1, 8, &[96, 96], false),
    case("1x16x32x32", 1, 16, &[32, 32], false),
    case("32x512x1x1", 32, 512, &[1, 1], false),
    case("4096x256", 4096, 256, &[], false),
    case("128x1024", 128, 1024, &[], false),
];

impl Case {
    /// In a layout; `None` for dense tensors in NCHW, which are the same as in NHWC.
    ///
    /// # Errors
    /// None, for the shapes of the table.
    pub fn shape(&self, layout: Layout) -> Result<Option<Shape>, Error> {
        if self.spatial.is_empty() && layout == Layout::Nchw {
            return Ok(None);
        }
        Shape::new(layout, self.batch, self.channels, self.spatial).map(Some)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.spatial.iter().product::<usize>()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Case> {
        CASES.iter().find(|c| c.name == name)
    }
}

/// As in names of benchmarks and records.
pub fn layout_name(layout: Layout) -> &'static str {
    match layout {
        Layout::Nhwc => "nhwc",
        _ => "nchw",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_shape() {
        for case in CASES {
            let dims: Vec<String> =
                [case.batch, case.channels].iter().chain(case.spatial).map(ToString::to_string).collect();
            assert_eq!(case.name, dims.join("x"));
            let shape = case.shape(Layout::Nhwc).unwrap().unwrap();
            assert_eq!(shape.len(), case.len());
            assert_eq!(case.len() % 16, 0, "whole cache lines, which the memory's figures assume");
        }
        assert_eq!(CASES.iter().filter(|c| c.big).count(), 10);
    }
}
