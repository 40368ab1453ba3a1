using System.Collections.Generic;
using System.Linq;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    public sealed class RetryPoliciesTests
    {
        private static readonly Dictionary<string, ServiceDescriptor> Services =
            new[] { TileMetadataStore.Descriptor, TileCacheAdmin.Descriptor }.ToDictionary(service => service.FullName);

        private static readonly MethodConfig Policy = RetryPolicies.CreateServiceConfig().MethodConfigs.Single();

        [Fact]
        public void Every_retried_call_is_one_of_the_contract()
        {
            Assert.NotEmpty(Policy.Names);
            Assert.All(Policy.Names, name => Assert.NotNull(Services[name.Service!].FindMethodByName(name.Method!)));
        }

        [Fact]
        public void A_stream_of_batches_is_not_retried()
        {
            Assert.DoesNotContain(Policy.Names, name => name.Method == "BulkInsertTiles");
        }

        [Fact]
        public void Calls_are_retried_while_the_daemon_is_unavailable()
        {
            Assert.Equal(StatusCode.Unavailable, Assert.Single(Policy.RetryPolicy!.RetryableStatusCodes));
        }
    }
}
