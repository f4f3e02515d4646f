//! Samples of [`PythonRandom`] against those that CPython 3.11.7 printed (`random.Random(seed)`,
//! `sample(range(n), k)`).

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// A seed, and for each of [`CASES`], drawn one after another: the first four, and SHA-256 of all.
type Drawn = (u64, [([usize; 4], &'static str); 11]);

const CASES: [(usize, usize); 11] = [
    (260, 128),
    (100, 32),
    (2000, 128),
    (1055, 128),
    (30, 30),
    (21, 5),
    (22, 5),
    (22, 6),
    (85, 6),
    (86, 6),
    (1000000, 20),
];

const DRAWN: [Drawn; 4] = [
    (
        0,
        [
            ([197, 215, 20, 132], "6c157486292824885a93d91ce57556f9e8ece166e7dc489258738a6146e48ad5"),
            ([10, 41, 78, 14], "db15600e216a05f2cdbccd1cfcaefb301b252edd467a5ebdca34848f972dbfe7"),
            ([758, 1707, 237, 74], "b7167d2dbab04867d924e3b30f46f33b3ea2bd843e8b5d3087d3072144ce1642"),
            ([490, 456, 917, 775], "b681f3fa3e8c87652122030d629bc00d4b43baee0c4751acf05b61dfec19d43c"),
            ([11, 7, 8, 18], "4a8ee96f81b9878c0bb535004157bbc76d42024e349c806c66b3e94bd2b72c66"),
            ([19, 15, 4, 12], "a159dd588f08d937303a969a771869d9597ef88344f2d40c59df5bc4b5cc54a4"),
            ([16, 15, 21, 10], "5b3fa3be0362a076649d6105840c51cd341b5fc7a081e05da0071422c0ceaa34"),
            ([21, 6, 17, 7], "5000e638842b3612c249c5d807bbb32a567dad8d31747ec04a039d2cc5ca04af"),
            ([40, 41, 4, 67], "4568f12cd1756bf5c1b2340409fc8b0f379d25eb3e309f2c513bfd06d7219b9f"),
            ([77, 19, 48, 74], "a690cfd6f3046b796fc2d9fe21fddedf5149e0be7c51b6ecb318ebc560abe32e"),
            ([69582, 838803, 88754, 541618], "becf1f267f856dbbbdd7d013131cc5ea554ea6a4f0a915aed3878efbe08690f3"),
        ],
    ),
    (
        1,
        [
            ([68, 32, 130, 60], "0c63d078e83c0017fff5b1c163a21dad7e3b6ced20668a74363c28334b84adee"),
            ([16, 66, 71, 26], "3868ed6ec30ec85c92cfbc141b38fa563453c7578129ef22b469ea0d3ae8da05"),
            ([1723, 1932, 1378, 144], "41d92312522567ca2924cb0be504d7ea3d4d201db7cc9e7f414d4d8d88c8dc42"),
            ([1042, 76, 774, 410], "2df6e0071b94f6d3bb6129e2f76c47b631843af10071e86590ffd759c1e1ce14"),
            ([25, 27, 18, 9], "bd980adfe5139f4ce875811840471faf7c1f4b3dc4b205477bca237aa8172b99"),
            ([4, 3, 16, 10], "4c3aff0ad8cd823db416b6462167281562853d066f3e12492282c5234acf0953"),
            ([16, 21, 5, 4], "1c2da53d378d63872d02516597f5e318d4bf0c93e80d232b075d76297429ee53"),
            ([9, 3, 16, 21], "3fadb6d36f3c13e5aeb6b58398862fe120918763788e9332f461384d2e296369"),
            ([18, 69, 4, 40], "134085de940252b0c5d2bdfc565c7afae2a2c25733134ec61fc350548bb34655"),
            ([26, 22, 38, 55], "91ca90b6e3697d3bfddefbbb9ec988944cd6a7fe5bb0f462caf5f2333e6c931b"),
            ([50917, 749547, 903976, 700216], "a314416803abcbcc969085e771aac768ad57c2a41c59f122bd1bc3b8c5c5abc2"),
        ],
    ),
    (
        42,
        [
            ([57, 12, 140, 125], "25001a577c66eda9d5798f3682d1152e958d59da87709218b2a49a1969e0426c"),
            ([17, 65, 63, 11], "2875684b327c2bed9a4a0263b96a653c74517c3165fa22f1c99d18d91ec4a6d8"),
            ([1990, 1025, 1560, 365], "c014ee044b014892a55d141cabd83a349c4ac556614f28fc710d7aa4dd66dde5"),
            ([110, 201, 124, 824], "1909d7885d203760883ab434638cf3687d076b3f819e45d333715fa68156760f"),
            ([11, 24, 17, 13], "699f793a2b8f121a988dbb0eb8e92b5969971d4d153ce3f196073df2902200c7"),
            ([9, 7, 19, 0], "7c6139661765f3c7f3f8c0c6a68ae84242ca5c42ce6c16181c32cad7d38aab92"),
            ([12, 10, 8, 2], "1385bd7e78c5250ee6b00fee8721aa36b5b44e915cfea96ee976b20d9ff45a6d"),
            ([20, 16, 12, 17], "96b9f9111b139d9ba674c7debcf361e868c5a7e0064d1c0135b32a5d49024f22"),
            ([14, 33, 22, 74], "df573eb9f2cf3a226c72d0252f02775d285c4facb96e4c8878f1ab3f747b46ef"),
            ([13, 76, 55, 44], "6a8e0ecd49095eb0a79287276fdb2091c55c7a64b1e77f72a8d60bfef8b26d66"),
            ([536265, 121263, 403906, 943199], "3bfc7d4870fefa89a44cd959cc70c8fcdb25d7c708dd2da3525cf377007108fb"),
        ],
    ),
    (
        1099511627783,
        [
            ([243, 128, 64, 192], "01ac2141c0d638aa68a9ff6327f036cafdc018cd34cb3e59f7f20f8134d11243"),
            ([37, 74, 67, 16], "d8ee6bfa2664d02b9a8b2f4d36363835bb29898992270cf800a7ad67d2a51baa"),
            ([1052, 1999, 1936, 1165], "5746dd3d371fce72c8b8ee4afd51e881adceb300aa1ae73edfed33be541f6fd2"),
            ([633, 400, 805, 635], "8aadeca6f6276aefd37f30f162c9f3c3813c07b5dc25832ba9bfe664a352fa93"),
            ([23, 21, 27, 0], "a6e078479fd87a5172fa002a86643981913363bcdfd20a02b5a4848d0ce5134f"),
            ([16, 19, 15, 4], "ef1c8f69c576918513572295c385de52ff31045b7e513b81b667f1eae6a3785d"),
            ([8, 9, 2, 14], "6ec92301cfc685638befdfcf494b815d2141c67049be429939d81c15d5f37328"),
            ([5, 0, 14, 6], "20b2e8427ad290cfa52b03c2d51942cc69fe02faa3d361656fe74ba0b4c6099c"),
            ([26, 19, 21, 77], "972e58c3ab768f7161f13364e388f87668c1480d8078f7b4d58c80ab3ff12883"),
            ([51, 46, 15, 30], "e2c2a38a532dc97e343eb08dd14ec64d56622161abd6d2dde86089e235a7aef1"),
            ([73360, 833832, 412457, 661659], "6387abc673cfd4493cb2756d6237559712ff8c718327caf704f972eff095f20e"),
        ],
    ),
];
const SEED_1_260_128: [usize; 128] = [
    68, 32, 130, 60, 253, 194, 115, 120, 166, 97, 201, 53, 24, 124, 7, 228, 213, 99, 110, 155, 195, 196, 0, 178, 114,
    259, 184, 205, 58, 151, 26, 81, 245, 5, 6, 251, 138, 2, 250, 175, 55, 108, 185, 227, 135, 56, 239, 112, 126, 141,
    59, 88, 209, 173, 214, 254, 117, 74, 226, 106, 142, 164, 25, 47, 161, 217, 75, 30, 190, 85, 233, 182, 128, 218,
    129, 171, 48, 77, 72, 150, 127, 204, 100, 180, 8, 122, 62, 103, 200, 170, 44, 93, 140, 95, 22, 212, 257, 27, 41,
    133, 177, 94, 125, 216, 252, 11, 78, 230, 148, 159, 43, 149, 187, 231, 3, 51, 223, 167, 207, 172, 131, 208, 90,
    203, 234, 1, 98, 139,
];
const SEED_1_THEN_100_32: [usize; 32] = [
    16, 66, 71, 26, 54, 7, 61, 46, 72, 70, 25, 64, 52, 62, 45, 53, 44, 0, 68, 69, 79, 78, 42, 58, 3, 29, 22, 90, 23,
    11, 32, 4,
];
const SEED_0_2000_20: [usize; 20] =
    [1729, 788, 1552, 1823, 861, 82, 530, 1977, 1047, 995, 829, 1880, 1605, 1699, 621, 1982, 976, 733, 1194, 1826];

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn python_samples_are_reproduced() {
    for (seed, drawn) in DRAWN {
        let mut random = PythonRandom::new(seed);
        for ((n, k), (first, digest)) in CASES.into_iter().zip(drawn) {
            let sample = random.sample_indices(n, k);
            assert_eq!(sample[..4], first, "seed {seed}, {k} of {n}");
            let joined: Vec<String> = sample.iter().map(usize::to_string).collect();
            assert_eq!(sha256(&joined.join(",")), digest, "seed {seed}, {k} of {n}");
        }
    }
    let mut random = PythonRandom::new(1);
    assert_eq!(random.sample_indices(260, 128), SEED_1_260_128);
    assert_eq!(random.sample_indices(100, 32), SEED_1_THEN_100_32);
    assert_eq!(PythonRandom::new(0).sample_indices(2000, 20), SEED_0_2000_20);
}

#[test]
fn python_bits_are_reproduced() {
    // [random._randbelow(n) for n in ..] after random.seed(1) and random.seed(2**40 + 7)
    let bounds = [1, 2, 3, 7, 100, 1000, 1 << 31, 1 << 32, (1 << 33) + 1, 1 << 40];
    for (seed, expected) in [
        (1, [0, 0, 1, 0, 63, 779, 1930549411, 901749037, 2095328386, 950861988493]),
        ((1 << 40) + 7, [0, 1, 2, 1, 66, 384, 1559734921, 1688693473, 8147535604, 978798470615]),
    ] {
        let mut random = PythonRandom::new(seed);
        assert_eq!(bounds.map(|n| random.below(n)), expected);
    }
}

proptest! {
    #[test]
    fn a_sample_holds_different_indices(seed in any::<u64>(), n in 0usize..400, k in 0usize..400) {
        let sample = PythonRandom::new(seed).sample_indices(n, k);
        prop_assert_eq!(sample.len(), k.min(n));
        let different: HashSet<usize> = sample.iter().copied().collect();
        prop_assert_eq!(different.len(), sample.len());
        prop_assert!(sample.iter().all(|&index| index < n));
    }
}
