//! Guest RAM of a machine that has never run: pages one by one and many at once.

use super::{Breach, breach, works};
use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::page_set::PageSet;
use crate::ports::PageMemory;

/// Pages with their content, in any order.
pub(super) type Pages = Vec<(PageIndex, Box<Page>)>;

/// All of memory.
pub(super) fn copy(memory: &dyn PageMemory) -> Result<Pages, Breach> {
    let all = PageSet::full(memory.layout());
    let mut pages: Pages = all.iter().map(|page| (page, filled(0))).collect();
    works("read_pages", memory.read_pages(&mut pages))?;
    Ok(pages)
}

fn filled(byte: u8) -> Box<Page> {
    Box::new([byte; PAGE_BYTES])
}

/// Content that no other page has, for a page of one of two rounds.
fn pattern(page: PageIndex, round: u8) -> Box<Page> {
    let mut content = filled(round);
    content[..8].copy_from_slice(&page.0.to_le_bytes());
    content[PAGE_BYTES - 8..].copy_from_slice(&(!page.0).to_le_bytes());
    content
}

/// The first and last pages of each region, the last one first: nobody promises an order.
fn corners(memory: &dyn PageMemory) -> Vec<PageIndex> {
    let mut corners = Vec::new();
    for region in memory.layout().regions() {
        let end = region.first.0 + region.pages;
        let (first, last) = (region.first.0, end.saturating_sub(1));
        corners.extend([first, (first + 1).min(last), last.max(1) - 1, last].map(PageIndex));
    }
    corners.retain(|page| memory.layout().contains(*page));
    corners.sort_unstable();
    corners.dedup();
    corners.reverse();
    corners
}

pub(super) fn check(memory: &dyn PageMemory) -> Result<(), Breach> {
    works("read_pages", memory.read_pages(&mut []))?;
    works("write_pages", memory.write_pages(&[]))?;
    let corners = corners(memory);
    for &page in &corners {
        works("write_page", memory.write_page(page, &pattern(page, 1)))?;
    }
    let mut read: Pages = corners.iter().map(|page| (*page, filled(0))).collect();
    works("read_pages", memory.read_pages(&mut read))?;
    compare("read_pages", &read, 1)?;
    let written: Pages = corners.iter().map(|&p| (p, pattern(p, 2))).collect();
    works("write_pages", memory.write_pages(&written))?;
    for (page, content) in &mut read {
        works("read_page", memory.read_page(*page, content))?;
    }
    compare("read_page", &read, 2)?;
    outside(memory, corners[0])?;
    works("clear", memory.clear())?;
    match copy(memory)?
        .iter()
        .find(|(_, content)| **content != [0; PAGE_BYTES])
    {
        Some((page, _)) => breach("clear", format!("{page} is not zero afterwards")),
        None => Ok(()),
    }
}

/// Whether the pages have what was written to them in this round.
fn compare(method: &'static str, read: &Pages, round: u8) -> Result<(), Breach> {
    match read
        .iter()
        .find(|(page, content)| **content != *pattern(*page, round))
    {
        Some((page, _)) => {
            let what = format!("{page} is read with another content than was written to it");
            breach(method, what)
        }
        None => Ok(()),
    }
}

/// What is not guest RAM is refused, alone and among others.
fn outside(memory: &dyn PageMemory, inside: PageIndex) -> Result<(), Breach> {
    let ends = memory.layout().regions().iter();
    let ends = ends.map(|region| PageIndex(region.first.0 + region.pages));
    for page in ends.chain([PageIndex(u64::MAX)]) {
        if memory.layout().contains(page) {
            continue;
        }
        let mut pages = vec![(inside, filled(0)), (page, filled(0))];
        let accepted = [
            ("read_page", memory.read_page(page, &mut filled(0)).is_ok()),
            ("write_page", memory.write_page(page, &filled(0)).is_ok()),
            ("write_pages", memory.write_pages(&pages).is_ok()),
            ("read_pages", memory.read_pages(&mut pages).is_ok()),
        ];
        if let Some((method, _)) = accepted.iter().find(|(_, accepted)| *accepted) {
            return breach(method, format!("it accepts {page}, which is not guest RAM"));
        }
    }
    Ok(())
}
