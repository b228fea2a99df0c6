//! What an image says that workers hold, by name.

mod failures_support;

use failures_support::*;
use kvscout::block::{Tier, WorkerId};
use kvscout::index::Image;
use kvscout::scout::Registration;
use serde_json::json;

type Held = (WorkerId, Tier, u32, Option<u64>, Vec<u64>);

fn held(site: &Site, workers: &[WorkerId]) -> Vec<Held> {
    let mut all = Vec::new();
    let each = |holding: kvscout::index::Holding<'_>| {
        let names: Vec<u64> = holding.names.iter().map(|name| name.0).collect();
        assert_eq!(holding.contents.len(), names.len());
        let parent = holding.parent.map(|name| name.0);
        all.push((holding.worker, holding.tier, holding.at, parent, names));
    };
    site.scout.holdings(each).unwrap();
    all.retain(|(worker, ..)| workers.contains(worker));
    all.sort_by_key(|(worker, tier, .., names)| (*worker, tier.rank(), names[0]));
    all
}

#[test]
fn each_stretch_is_said_with_what_comes_before_it() {
    let site = Site::new();
    let tokens: Vec<u32> = (0..20).collect();
    let (a, b) = (site.worker("a"), site.worker("b"));
    site.apply(a, &[stored(&[1, 2, 3, 4, 5], None, &tokens)]);
    site.apply(a, &[removed(&[3], "GPU")]);
    site.apply(a, &[with(stored(&[2], Some(1), &tokens[4..8]), &[("medium", json!("CPU"))])]);
    // Another way on after the second block, under names of its own.
    let other = [&tokens[..8], &[90, 91, 92, 93]].concat();
    site.apply(b, &[stored(&[101, 102, 103], None, &other)]);
    // Known by name alone: nobody knows where it belongs.
    site.apply(b, &[stored_by_name(&[900], "CPU")]);
    let expected = [
        (a, Tier::Gpu, 0, None, vec![1, 2]),
        (a, Tier::Gpu, 3, Some(3), vec![4, 5]),
        (a, Tier::Cpu, 1, Some(1), vec![2]),
        (b, Tier::Gpu, 0, None, vec![101, 102]),
        (b, Tier::Gpu, 2, Some(102), vec![103]),
    ];
    assert_eq!(held(&site, &[a, b]), expected);
    let mut contents = Vec::new();
    let each = |holding: kvscout::index::Holding<'_>| {
        contents.push((holding.at, holding.contents.to_vec()))
    };
    site.scout.holdings(each).unwrap();
    let of = |at: u32, len: usize| {
        contents.iter().filter(move |(a, held)| (*a, held.len()) == (at, len))
    };
    // Equal contents are equal whoever holds them, and different ones are not.
    let begins: Vec<_> = of(0, 2).map(|(_, held)| held).collect();
    assert!(begins.len() == 2 && begins[0] == begins[1] && begins[0][0] != begins[0][1]);
    assert!(of(1, 1).all(|(_, held)| held[0] == begins[0][1]));
    let other = Registration { tenant: "t".into(), ..Registration::new("c", "m") };
    let c = site.register(other);
    site.apply(c, &[stored(&[7], None, &tokens[..4])]);
    assert_eq!(held(&site, &[c]), [(c, Tier::Gpu, 0, None, vec![7])]);
    site.scout.unregister(a).unwrap();
    assert_eq!(held(&site, &[a]), []);
}

#[test]
fn what_is_no_image_is_refused_or_says_less_and_never_panics() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1, 2, 3], None, &(0..12).collect::<Vec<_>>())]);
    site.apply(worker, &[stored(&[4], Some(2), &[7; 4])]);
    let image = site.scout.snapshot(0).image.into_bytes();
    for len in 0..image.len() {
        let mut stretches = 0;
        // What comes after the last tree is not looked at.
        let _ = Image::from_bytes(image[..len].to_vec()).holdings(|_| stretches += 1);
        assert!(stretches <= 3);
    }
    assert!(Image::from_bytes(image[..40].to_vec()).holdings(|_| ()).is_err());
    for at in 0..image.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut broken = image.clone();
            broken[at] = value;
            let _ = Image::from_bytes(broken).holdings(|_| ());
        }
    }
}
