using System;
using System.Linq;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    public sealed class BlockDigestsTests
    {
        private static readonly BlockDigestScheme Scheme =
            BlockDigestReflection.Descriptor.GetOptions().GetExtension(BlockDigestExtensions.BlockDigest);

        [Fact]
        public void The_locked_vectors_are_met()
        {
            BlockDigests.VerifyLockedVectors();
        }

        [Fact]
        public void Tiles_in_any_order_have_the_digest_of_their_block()
        {
            BlockDigestVector vector = Scheme.Vectors.Last();
            TileMetadata[] tiles = vector.Tiles.Reverse().Select(Tile).ToArray();

            Assert.Equal(Convert.FromHexString(vector.Digest), BlockDigests.DigestBlock(tiles));
        }

        [Fact]
        public void What_is_local_is_not_digested()
        {
            TileMetadata tile = Tile(Scheme.Vectors[0].Tiles[0]);
            TileMetadata other = tile.Clone();
            other.FilePath = "elsewhere.png";
            other.FreshnessLabel = FreshnessLabel.Downgraded;

            Assert.Equal(BlockDigests.DigestTile(tile), BlockDigests.DigestTile(other));
        }

        private static TileMetadata Tile(TileDigestVector vector)
        {
            return new TileMetadata
            {
                TileUuid = vector.TileUuid,
                ContentSha256 = vector.ContentSha256,
                CapturedAt = vector.CapturedAt,
            };
        }
    }
}
