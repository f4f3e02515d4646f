//! What the schemas of the operators say about the types of their outputs. Made by `tools/operator_types.py`.

use super::Domain::{Microsoft, Standard};
use super::Type::{All, Attribute, Branches, Constant, Fixed, Given, Same, Unknown, Value};
use super::{Domain, Type};
use crate::onnx::tensor::DataType as D;

/// Operators whose outputs follow the same rules.
pub(super) struct Group {
    pub domain: Domain,
    /// First and last version of the operator set.
    pub versions: (i64, i64),
    /// The rule of each output.
    pub outputs: &'static [Type],
    /// Whether the last rule holds for all outputs from there on.
    pub variadic: bool,
    /// Names of the operators, with spaces between.
    pub names: &'static str,
}

#[rustfmt::skip]
pub(super) const GROUPS: &[Group] = &[
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Abs AveragePool Ceil DepthToSpace Elu Exp Flatten Floor Gather GlobalAveragePool GlobalLpPool \
        GlobalMaxPool HardSigmoid Hardmax Identity LRN LeakyRelu Log LogSoftmax LpNormalization LpPool \
        MeanVarianceNormalization MemcpyFromHost MemcpyToHost Neg Reciprocal ReduceL1 ReduceL2 ReduceLogSum \
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Selu \
        Sigmoid Slice Softmax Softplus Softsign SpaceToDepth Sqrt Squeeze Tanh ThresholdedRelu Transpose \
        Unsqueeze" },
    Group { domain: Standard, versions: (7, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Acos Asin Atan Cos Sin Tan" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Acosh Asinh Atanh Compress Cosh Erf MaxUnpool Shrink Sign Sinh" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        Add Div MatMul MaxRoiPool Mul PRelu Sub" },
    Group { domain: Standard, versions: (1, 9), outputs: &[Same(&[0])], variadic: false, names: "\
        Affine Crop DynamicSlice GivenTensorFill ImageScaler ParametricSoftplus Scale ScaledTanh Upsample" },
    Group { domain: Standard, versions: (20, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        AffineGrid Gelu" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        And Equal Greater Less Not Or Xor" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Fixed(D::INT64)], variadic: false, names: "\
        ArgMax ArgMin Shape Size" },
    Group { domain: Standard, versions: (23, i64::MAX), outputs: &[Same(&[0, 1, 4]), Same(&[0, 1, 4]), Same(&[2, 5]), Same(&[0, 1, 4])], variadic: false, names: "\
        Attention" },
    Group { domain: Standard, versions: (1, 13), outputs: &[Same(&[0, 1, 2, 3, 4]), Same(&[0, 1, 2, 3, 4]), Same(&[0, 1, 2, 3, 4]), Same(&[0, 1, 2, 3, 4]), Same(&[0, 1, 2, 3, 4])], variadic: false, names: "\
        BatchNormalization" },
    Group { domain: Standard, versions: (14, 14), outputs: &[Same(&[0, 1, 2]), Same(&[3, 4]), Same(&[3, 4])], variadic: false, names: "\
        BatchNormalization" },
    Group { domain: Standard, versions: (15, i64::MAX), outputs: &[Same(&[0]), Same(&[3, 4]), Same(&[3, 4])], variadic: false, names: "\
        BatchNormalization" },
    Group { domain: Standard, versions: (15, i64::MAX), outputs: &[Attribute("dtype", &Same(&[0]))], variadic: false, names: "\
        Bernoulli" },
    Group { domain: Standard, versions: (26, i64::MAX), outputs: &[Attribute("to", &Unknown)], variadic: false, names: "\
        BitCast" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        BitShift" },
    Group { domain: Standard, versions: (18, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        BitwiseAnd BitwiseOr BitwiseXor" },
    Group { domain: Standard, versions: (18, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        BitwiseNot CenterCropPad Col2Im Mish" },
    Group { domain: Standard, versions: (17, i64::MAX), outputs: &[Attribute("output_datatype", &Fixed(D::FLOAT))], variadic: false, names: "\
        BlackmanWindow HammingWindow HannWindow MelWeightMatrix" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Attribute("to", &Unknown)], variadic: false, names: "\
        Cast" },
    Group { domain: Standard, versions: (15, i64::MAX), outputs: &[Same(&[1])], variadic: false, names: "\
        CastLike" },
    Group { domain: Standard, versions: (27, i64::MAX), outputs: &[Same(&[0, 1, 2, 3]), Same(&[0, 1, 2, 3])], variadic: false, names: "\
        CausalConvWithState" },
    Group { domain: Standard, versions: (12, 27), outputs: &[Fixed(D::FLOAT)], variadic: false, names: "\
        Celu" },
    Group { domain: Standard, versions: (28, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Celu" },
    Group { domain: Standard, versions: (1, 10), outputs: &[Same(&[0])], variadic: false, names: "\
        Clip Pad" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        Clip Range" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[All(0)], variadic: false, names: "\
        Concat Max Mean Min Sum" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Unknown], variadic: false, names: "\
        ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert \
        SplitToSequence" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Constant], variadic: false, names: "\
        Constant" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Value], variadic: false, names: "\
        ConstantOfShape" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        Conv ConvTranspose DisentangledAttention_TRT Gemm InstanceNormalization" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Fixed(D::INT32)], variadic: false, names: "\
        ConvInteger MatMulInteger" },
    Group { domain: Standard, versions: (26, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        CumProd" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        CumSum Det GatherElements GatherND Round" },
    Group { domain: Standard, versions: (17, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        DFT" },
    Group { domain: Standard, versions: (19, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4])], variadic: false, names: "\
        DeformConv" },
    Group { domain: Standard, versions: (10, 18), outputs: &[Fixed(D::FLOAT)], variadic: false, names: "\
        DequantizeLinear" },
    Group { domain: Standard, versions: (19, 22), outputs: &[Same(&[1])], variadic: false, names: "\
        DequantizeLinear" },
    Group { domain: Standard, versions: (23, 23), outputs: &[Attribute("output_dtype", &Same(&[1]))], variadic: false, names: "\
        DequantizeLinear" },
    Group { domain: Standard, versions: (24, i64::MAX), outputs: &[Unknown], variadic: false, names: "\
        DequantizeLinear" },
    Group { domain: Standard, versions: (1, 9), outputs: &[Same(&[0]), Same(&[0])], variadic: false, names: "\
        Dropout" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Same(&[0]), Fixed(D::BOOL)], variadic: false, names: "\
        Dropout" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Fixed(D::UINT8), Fixed(D::FLOAT), Fixed(D::UINT8)], variadic: false, names: "\
        DynamicQuantizeLinear" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Same(&[0, 1, 2]), Same(&[0, 1, 2]), Fixed(D::INT32)], variadic: false, names: "\
        EfficientNMS_TRT" },
    Group { domain: Standard, versions: (12, i64::MAX), outputs: &[All(0)], variadic: false, names: "\
        Einsum" },
    Group { domain: Standard, versions: (8, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Expand" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Attribute("dtype", &Same(&[0]))], variadic: false, names: "\
        EyeLike" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 5]), Same(&[0, 1, 2, 3, 5])], variadic: false, names: "\
        GRU RNN" },
    Group { domain: Standard, versions: (1, 9), outputs: &[Same(&[0, 1, 2, 3])], variadic: false, names: "\
        GRUUnit" },
    Group { domain: Standard, versions: (12, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        GreaterOrEqual LessOrEqual" },
    Group { domain: Standard, versions: (16, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        GridSample" },
    Group { domain: Standard, versions: (18, i64::MAX), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        GroupNormalization" },
    Group { domain: Standard, versions: (14, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        HardSwish Trilu" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Branches], variadic: true, names: "\
        If" },
    Group { domain: Standard, versions: (20, i64::MAX), outputs: &[Fixed(D::UINT8)], variadic: false, names: "\
        ImageDecoder" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        IsInf" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        IsNaN" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 5, 6, 7]), Same(&[0, 1, 2, 3, 5, 6, 7]), Same(&[0, 1, 2, 3, 5, 6, 7])], variadic: false, names: "\
        LSTM" },
    Group { domain: Standard, versions: (1, 16), outputs: &[Same(&[1, 2]), Attribute("stash_type", &Fixed(D::FLOAT)), Attribute("stash_type", &Fixed(D::FLOAT))], variadic: false, names: "\
        LayerNormalization" },
    Group { domain: Standard, versions: (17, i64::MAX), outputs: &[Same(&[0, 1, 2]), Attribute("stash_type", &Fixed(D::FLOAT)), Attribute("stash_type", &Fixed(D::FLOAT))], variadic: false, names: "\
        LayerNormalization" },
    Group { domain: Standard, versions: (27, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5]), Same(&[3])], variadic: false, names: "\
        LinearAttention" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Unknown], variadic: true, names: "\
        Loop" },
    Group { domain: Standard, versions: (1, 7), outputs: &[Same(&[0])], variadic: false, names: "\
        MaxPool" },
    Group { domain: Standard, versions: (8, i64::MAX), outputs: &[Same(&[0]), Fixed(D::INT64)], variadic: false, names: "\
        MaxPool" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        Mod RoiAlign" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Fixed(D::FLOAT)], variadic: false, names: "\
        MultilevelCropAndResize_TRT PyramidROIAlign_TRT" },
    Group { domain: Standard, versions: (7, i64::MAX), outputs: &[Attribute("dtype", &Fixed(D::INT32))], variadic: false, names: "\
        Multinomial" },
    Group { domain: Standard, versions: (12, i64::MAX), outputs: &[Same(&[0, 2])], variadic: false, names: "\
        NegativeLogLikelihoodLoss" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Fixed(D::INT64)], variadic: false, names: "\
        NonMaxSuppression" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Fixed(D::INT64)], variadic: false, names: "\
        NonZero" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Same(&[2])], variadic: false, names: "\
        OneHot" },
    Group { domain: Standard, versions: (15, i64::MAX), outputs: &[Unknown], variadic: false, names: "\
        Optional OptionalGetElement" },
    Group { domain: Standard, versions: (15, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        OptionalHasElement" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Same(&[0, 2])], variadic: false, names: "\
        Pad ScatterElements ScatterND" },
    Group { domain: Standard, versions: (1, 11), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        Pow" },
    Group { domain: Standard, versions: (12, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Pow" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Same(&[7])], variadic: false, names: "\
        QLinearConv QLinearMatMul" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Attribute("output_dtype", &Given(2, &Fixed(D::UINT8)))], variadic: false, names: "\
        QuantizeLinear" },
    Group { domain: Standard, versions: (23, i64::MAX), outputs: &[Same(&[1])], variadic: false, names: "\
        RMSNormalization" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Attribute("dtype", &Fixed(D::FLOAT))], variadic: false, names: "\
        RandomNormal RandomUniform" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Attribute("dtype", &Same(&[0]))], variadic: false, names: "\
        RandomNormalLike RandomUniformLike" },
    Group { domain: Standard, versions: (20, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        RegexFullMatch" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Resize ReverseSequence" },
    Group { domain: Standard, versions: (23, i64::MAX), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        RotaryEmbedding" },
    Group { domain: Standard, versions: (17, i64::MAX), outputs: &[Same(&[0, 2])], variadic: false, names: "\
        STFT" },
    Group { domain: Standard, versions: (8, i64::MAX), outputs: &[Unknown], variadic: true, names: "\
        Scan" },
    Group { domain: Standard, versions: (9, 10), outputs: &[Same(&[0, 2])], variadic: false, names: "\
        Scatter" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Fixed(D::INT64)], variadic: false, names: "\
        SequenceLength" },
    Group { domain: Standard, versions: (17, i64::MAX), outputs: &[Unknown], variadic: true, names: "\
        SequenceMap" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[1]), Attribute("stash_type", &Fixed(D::FLOAT))], variadic: false, names: "\
        SimplifiedLayerNormalization" },
    Group { domain: Standard, versions: (12, i64::MAX), outputs: &[Same(&[0, 2]), Same(&[0, 2])], variadic: false, names: "\
        SoftmaxCrossEntropyLoss" },
    Group { domain: Standard, versions: (1, 1), outputs: &[Same(&[0, 1])], variadic: true, names: "\
        Split" },
    Group { domain: Standard, versions: (2, i64::MAX), outputs: &[Same(&[0])], variadic: true, names: "\
        Split" },
    Group { domain: Standard, versions: (20, i64::MAX), outputs: &[Fixed(D::STRING)], variadic: false, names: "\
        StringConcat" },
    Group { domain: Standard, versions: (10, i64::MAX), outputs: &[Fixed(D::STRING)], variadic: false, names: "\
        StringNormalizer" },
    Group { domain: Standard, versions: (20, i64::MAX), outputs: &[Fixed(D::STRING), Fixed(D::INT64)], variadic: false, names: "\
        StringSplit" },
    Group { domain: Standard, versions: (28, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        SwiGLU" },
    Group { domain: Standard, versions: (24, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Swish" },
    Group { domain: Standard, versions: (24, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        TensorScatter" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Fixed(D::FLOAT)], variadic: false, names: "\
        TfIdfVectorizer" },
    Group { domain: Standard, versions: (1, 5), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        Tile" },
    Group { domain: Standard, versions: (6, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        Tile" },
    Group { domain: Standard, versions: (1, i64::MAX), outputs: &[Same(&[0]), Fixed(D::INT64)], variadic: false, names: "\
        TopK" },
    Group { domain: Standard, versions: (11, i64::MAX), outputs: &[Same(&[0]), Fixed(D::INT64), Fixed(D::INT64), Fixed(D::INT64)], variadic: false, names: "\
        Unique" },
    Group { domain: Standard, versions: (9, i64::MAX), outputs: &[Same(&[1, 2])], variadic: false, names: "\
        Where" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5]), Same(&[0, 1, 2, 4, 5])], variadic: false, names: "\
        Attention DecoderMaskedSelfAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13]), Same(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13]), Same(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13])], variadic: false, names: "\
        AttnLSTM" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Same(&[5, 6]), Same(&[5, 6])], variadic: false, names: "\
        BeamSearch" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2])], variadic: false, names: "\
        BiasAdd ConvStateReplay FusedGemm GatedRMSNorm GemmFastGelu NhwcConv Range" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2]), Fixed(D::BOOL)], variadic: false, names: "\
        BiasDropout" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1])], variadic: false, names: "\
        BiasGelu BiasSoftmax BiasSplitGelu CDist ComplexMul ComplexMulConj CropAndResize FastGelu FusedMatMul \
        FusedMatMulActivation HyperConnectionPostMix SwiGLU TransposeMatMul" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT64), Fixed(D::INT64)], variadic: false, names: "\
        BifurcationDetector" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2]), Unknown], variadic: false, names: "\
        BitmaskBiasDropout" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0]), Unknown], variadic: false, names: "\
        BitmaskDropout" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0])], variadic: false, names: "\
        BranchwiseRMSNorm ExpandDims GatherND Gelu GroupNorm HyperConnectionPreMix Inverse Irfft MatMulPacked \
        MoEPacked NhwcMaxPool QuickGelu RelativePositionBias RestorePadding Rfft SampleOp ScaledSiLU \
        TorchEmbedding Trilu UnfoldTensor" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3]), Same(&[0, 1, 2, 3]), Same(&[0, 1, 2, 3])], variadic: false, names: "\
        CausalConvWithState" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 3])], variadic: false, names: "\
        ConvTransposeWithDynamicPads" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 6, 7]), Same(&[0, 1, 2, 3, 4, 6, 7]), Same(&[0, 1, 2, 3, 4, 6, 7])], variadic: false, names: "\
        DecoderAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5, 6, 10]), Same(&[0, 1, 2, 4, 5, 6, 10]), Same(&[0, 1, 2, 4, 5, 6, 10]), Unknown], variadic: false, names: "\
        DecoderMaskedMultiHeadAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Unknown], variadic: false, names: "\
        DequantizeBFP DequantizeWithOrder GatherPacked GemmFloat8 GridSample MatMulInteger16 MurmurHash3 \
        ReduceSumInteger" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[1])], variadic: false, names: "\
        DequantizeLinear QLinearConcat SparseToDenseMatMul" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::FLOAT), Fixed(D::FLOAT), Fixed(D::FLOAT)], variadic: false, names: "\
        DynamicQuantizeLSTM" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::FLOAT)], variadic: false, names: "\
        DynamicQuantizeMatMul GatedDeltaNetStateReplay MatMulFpQ4 MaxpoolWithMask NGramRepeatBlock \
        WordConvEmbedding" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[5, 6, 11, 12, 14, 15, 16]), Same(&[3, 4]), Same(&[3, 4]), Fixed(D::INT32)], variadic: false, names: "\
        DynamicSparseAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32)], variadic: false, names: "\
        DynamicTimeWarping GreedySearch MulInteger" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Unknown], variadic: true, names: "\
        EPContext" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[2, 3, 4, 5, 6]), Fixed(D::INT32), Same(&[2, 3, 4, 5, 6])], variadic: false, names: "\
        EmbedLayerNormalization" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 5]), Same(&[0, 1, 2, 3, 4, 5])], variadic: false, names: "\
        EngramGate NGramHashMapping" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3])], variadic: false, names: "\
        FusedConv GatedAdd NhwcFusedConv" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2]), Fixed(D::FLOAT), Fixed(D::FLOAT)], variadic: false, names: "\
        GatedDeltaNet" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 5])], variadic: false, names: "\
        GatedRelativePositionBias LongformerAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[2])], variadic: false, names: "\
        GatherBlockQuantized" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::FLOAT16), Fixed(D::FLOAT16)], variadic: false, names: "\
        GemmaRotaryEmbedding" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 7, 8, 10, 11, 14, 15]), Same(&[3, 4]), Same(&[3, 4]), Same(&[0, 1, 2, 7, 8, 10, 11, 14, 15])], variadic: false, names: "\
        GroupQueryAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 5, 6]), Same(&[0, 1, 2, 3, 4, 5, 6]), Same(&[0, 1, 2, 3, 4, 5, 6])], variadic: false, names: "\
        HyperConnectionLowRankMix" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::BOOL)], variadic: false, names: "\
        IsAllFinite" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5]), Same(&[3])], variadic: false, names: "\
        LinearAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 3]), Same(&[0, 3])], variadic: false, names: "\
        LinearAttentionGate" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2, 3])], variadic: false, names: "\
        MRotaryEmbedding RotaryEmbedding" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::BFLOAT16), Fixed(D::BFLOAT16), Fixed(D::FLOAT), Fixed(D::BFLOAT16), Fixed(D::FLOAT)], variadic: false, names: "\
        Mamba2Verify" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 5])], variadic: false, names: "\
        MatMulBlockQuantizedFp4Weight" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 4])], variadic: false, names: "\
        MatMulBlockQuantizedFp8Weight" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2])], variadic: false, names: "\
        MatMulBnb4 Pad" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[2, 3, 6])], variadic: false, names: "\
        MatMulIntegerToFloat" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2, 5])], variadic: false, names: "\
        MatMulNBits" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5, 7, 8]), Same(&[0, 1, 2, 4, 5, 7, 8])], variadic: false, names: "\
        MatMulNBitsMlp" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2, 4, 6])], variadic: false, names: "\
        MatMulNBitsQLoRA" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5, 7, 8, 10, 11]), Same(&[0, 1, 2, 4, 5, 7, 8, 10, 11]), Same(&[0, 1, 2, 4, 5, 7, 8, 10, 11]), Same(&[0, 1, 2, 4, 5, 7, 8, 10, 11])], variadic: false, names: "\
        MatMulNBitsQkv" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 5, 6, 7])], variadic: false, names: "\
        MoE" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2]), Fixed(D::FLOAT), Fixed(D::FLOAT)], variadic: false, names: "\
        MoEGroupRouter" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 5, 6, 7]), Same(&[0, 1, 2, 3, 5, 6, 7]), Same(&[0, 1, 2, 3, 5, 6, 7]), Unknown], variadic: false, names: "\
        MultiHeadAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 5])], variadic: false, names: "\
        PackedAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 6])], variadic: false, names: "\
        PackedMultiHeadAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Fixed(D::INT32), Same(&[12]), Same(&[0, 1, 2, 3, 4, 5, 8, 9, 10, 13, 14]), Same(&[0, 1, 2, 3, 4, 5, 8, 9, 10, 13, 14]), Fixed(D::INT32), Same(&[0, 1, 2, 3, 4, 5, 8, 9, 10, 13, 14]), Fixed(D::INT32), Fixed(D::INT32)], variadic: false, names: "\
        PackedSparseAttentionIndexer" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Fixed(D::INT32), Fixed(D::INT32)], variadic: false, names: "\
        PackedSparseAttentionIndexerMerge" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 8, 9, 11, 12, 13]), Same(&[3, 4]), Same(&[3, 4])], variadic: false, names: "\
        PagedAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[2, 3, 4, 8]), Same(&[2, 3, 4, 8])], variadic: false, names: "\
        QAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::FLOAT), Fixed(D::INT32)], variadic: false, names: "\
        QEmbedLayerNormalization" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Given(8, &Fixed(D::FLOAT))], variadic: false, names: "\
        QGemm" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2, 3, 5, 7])], variadic: false, names: "\
        QLinearAdd QLinearMul" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 2, 4])], variadic: false, names: "\
        QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearReduceMean QLinearSigmoid \
        QLinearSoftmax" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[7])], variadic: false, names: "\
        QLinearConv" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[1, 3, 4, 6, 8])], variadic: false, names: "\
        QLinearWhere" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 4, 7, 10, 14])], variadic: false, names: "\
        QMoE" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT8)], variadic: false, names: "\
        QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul \
        QuantizeWithOrder" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::UINT8), Fixed(D::INT64), Fixed(D::INT64)], variadic: false, names: "\
        QuantizeBFP" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Given(2, &Fixed(D::UINT8))], variadic: false, names: "\
        QuantizeLinear" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Unknown, Fixed(D::FLOAT)], variadic: false, names: "\
        RMSNormRotary" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0]), Fixed(D::INT32), Fixed(D::INT32), Fixed(D::INT32)], variadic: false, names: "\
        RemovePadding" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1]), Same(&[0, 1])], variadic: false, names: "\
        RouterGateUpProj" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Fixed(D::FLOAT)], variadic: false, names: "\
        Sampling" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 3, 4]), Same(&[0, 3, 4])], variadic: false, names: "\
        SkipGroupNorm" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4]), Fixed(D::FLOAT), Fixed(D::FLOAT), Same(&[0, 1, 2, 3, 4])], variadic: false, names: "\
        SkipLayerNormalization" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3]), Fixed(D::FLOAT), Fixed(D::FLOAT), Same(&[0, 1, 2, 3])], variadic: false, names: "\
        SkipSimplifiedLayerNormalization" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[All(0)], variadic: true, names: "\
        Snpe" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 3, 4, 9, 10]), Same(&[0, 1, 2, 3, 4, 9, 10]), Same(&[0, 1, 2, 3, 4, 9, 10])], variadic: false, names: "\
        SparseAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Same(&[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 13]), Same(&[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 13])], variadic: false, names: "\
        SparseAttentionIndexer" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 11, 12, 14, 15, 16, 17, 18]), Same(&[3, 4]), Same(&[3, 4])], variadic: false, names: "\
        SparsePagedAttention" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Fixed(D::INT64), Fixed(D::INT64)], variadic: false, names: "\
        SpeculativePrefixCommit" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::STRING)], variadic: false, names: "\
        Tokenizer" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0]), Fixed(D::INT64), Fixed(D::INT64)], variadic: false, names: "\
        Unique" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 3, 4, 6, 7]), Same(&[0, 1, 3, 4, 6, 7]), Same(&[0, 1, 3, 4, 6, 7])], variadic: false, names: "\
        VarlenCausalConvWithState" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Same(&[0, 1, 2, 4, 5, 6]), Same(&[0, 1, 2, 4, 5, 6]), Fixed(D::INT32), Same(&[0, 1, 2, 4, 5, 6])], variadic: false, names: "\
        VarlenNGramHashMapping" },
    Group { domain: Microsoft, versions: (1, i64::MAX), outputs: &[Fixed(D::INT32), Same(&[5, 6, 14]), Same(&[5, 6, 14]), Fixed(D::FLOAT), Same(&[5, 6, 14])], variadic: false, names: "\
        WhisperBeamSearch" },
];
