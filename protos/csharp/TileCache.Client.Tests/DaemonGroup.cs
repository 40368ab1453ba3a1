using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>The tests that share one daemon.</summary>
    [CollectionDefinition(Name)]
    public sealed class DaemonGroup : ICollectionFixture<Daemon>
    {
        public const string Name = "daemon";
    }
}
