using System.Collections.Generic;

namespace TileCache.Client
{
    /// <summary>The fields of a <c>BlockUpdate</c>. Versions are any texts that stand for the bytes.</summary>
    internal sealed class ReplicaUpdate<TTile>
    {
        public ReplicaUpdate(
            BlockKey block,
            string version,
            string baseVersion,
            IReadOnlyList<TTile> tiles,
            IReadOnlyList<string> removedTileUuids,
            bool isPartial)
        {
            Block = block;
            Version = version;
            BaseVersion = baseVersion;
            Tiles = tiles;
            RemovedTileUuids = removedTileUuids;
            IsPartial = isPartial;
        }

        public BlockKey Block { get; }

        public string Version { get; }

        /// <summary>Empty: the tiles replace the block.</summary>
        public string BaseVersion { get; }

        public IReadOnlyList<TTile> Tiles { get; }

        public IReadOnlyList<string> RemovedTileUuids { get; }

        public bool IsPartial { get; }
    }
}
