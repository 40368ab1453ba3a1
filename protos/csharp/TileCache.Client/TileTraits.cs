using System;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>How a replica reads the contract's tiles.</summary>
    internal sealed class TileTraits : ITileTraits<TileMetadata>
    {
        /// <summary>From best to worst; the first ones are those that a query returns by default.</summary>
        private static readonly FreshnessLabel[] Labels =
        {
            FreshnessLabel.Fresh,
            FreshnessLabel.Downgraded,
            FreshnessLabel.StaleWarn,
            FreshnessLabel.StaleReject,
            FreshnessLabel.Rejected,
        };

        public string IdOf(TileMetadata tile)
        {
            return tile.TileUuid;
        }

        public int ColumnOf(TileMetadata tile)
        {
            return tile.Key.X;
        }

        public int RowOf(TileMetadata tile)
        {
            return tile.Key.Y;
        }

        public bool IsUsable(TileMetadata tile)
        {
            return RankOf(tile) <= RankOf(FreshnessLabel.StaleWarn);
        }

        public int Compare(TileMetadata first, TileMetadata second)
        {
            int order = RankOf(first).CompareTo(RankOf(second));
            if (order == 0)
            {
                order = CaptureOf(second).CompareTo(CaptureOf(first));
            }

            return order == 0 ? string.CompareOrdinal(first.TileUuid, second.TileUuid) : order;
        }

        private static int RankOf(TileMetadata tile)
        {
            return RankOf(tile.FreshnessLabel);
        }

        private static int RankOf(FreshnessLabel label)
        {
            int rank = Array.IndexOf(Labels, label);
            return rank < 0 ? Labels.Length : rank;
        }

        private static (long Seconds, int Nanos) CaptureOf(TileMetadata tile)
        {
            return tile.CapturedAt is null ? (long.MinValue, 0) : (tile.CapturedAt.Seconds, tile.CapturedAt.Nanos);
        }
    }
}
