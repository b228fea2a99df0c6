//! stub
mod replay;
fn main() {
    let ok = replay::run(std::io::stdin().lock(), std::io::stdout().lock(), vec![]).unwrap();
    std::process::exit(i32::from(!ok));
}
