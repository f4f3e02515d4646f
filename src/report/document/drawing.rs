//! Figures, and what a page needs to show one.

use serde::{Serialize, Serializer};

use super::{Chart, HeatMap, Shares, Track};

/// A figure as data. Drawings have a page only; the numbers of each stand in a table beside it.
#[derive(Debug, Clone)]
pub enum Figure {
    /// Lines or points over two axes.
    Chart(Chart),
    /// Shaded cells, position by layer.
    HeatMap(HeatMap),
    /// Two shares on one scale, beside a number.
    Track(Track),
    /// Parts of a whole as a bar, beside a number.
    Shares(Shares),
}

impl Figure {
    /// Whether there is nothing to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.draw().svg.is_empty()
    }

    fn draw(&self) -> Drawing {
        match self {
            Self::Chart(chart) => chart.draw(),
            Self::HeatMap(map) => map.draw(),
            Self::Track(track) => Drawing { svg: track.draw(), ..Drawing::default() },
            Self::Shares(shares) => Drawing { svg: shares.draw(), ..Drawing::default() },
        }
    }
}

/// A figure as a page's templates get it: SVG, and what they write around it.
#[derive(Default, Serialize)]
pub(super) struct Drawing {
    pub title: &'static str,
    /// Whether the drawing keeps its size and scrolls, instead of being as wide as its column.
    pub scrolls: bool,
    pub svg: String,
    /// What belongs to which mark: a small SVG and its name.
    pub legend: Vec<Entry>,
    /// The ends of a scale of shades, with its ramp between them.
    pub key: Option<Key>,
}

#[derive(Serialize)]
pub(super) struct Entry {
    pub mark: String,
    pub name: &'static str,
}

#[derive(Serialize)]
pub(super) struct Key {
    pub low: String,
    pub ramp: String,
    pub high: String,
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.draw().serialize(serializer)
    }
}
